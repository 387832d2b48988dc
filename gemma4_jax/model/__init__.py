"""The mathematics of Gemma 4: pure single-device references, ignorant of meshes, files and text."""
