"""The tokenizer: ids as Hugging Face's, no control token out of ordinary text, files in and out."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma4_jax.errors import UserError
from gemma4_jax.text import Tokenizer, control
from tests.text.conftest import cases

# Whole and broken control tokens, markup, and what surrounds them; U+2581 stands for a space and is
# therefore the one character that does not come back.
FRAGMENTS = st.one_of(
    st.sampled_from(control.ALL),
    st.sampled_from(["<", "|", ">", "<|", "|>", "turn", '"', "<table>", "</td>", "[multimodal]"]),
    st.sampled_from(
        ["\n", "\n\n\n", "  ", "\t", "<unused7>", "<0x41>", "12", "\u00e9", "\U0001f642"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=8),
)
PROSE = st.lists(FRAGMENTS, max_size=12).map("".join)


@pytest.mark.parametrize("case", cases("huggingface_ids.json"), ids=lambda c: repr(c["text"])[:30])
def test_ids_are_those_of_hugging_face(builtin: Tokenizer, case: dict) -> None:
    assert builtin.encode(case["text"]) == case["ids"]


def test_control_tokens_of_the_real_vocabulary(builtin: Tokenizer) -> None:
    expected = {
        **{
            "<pad>": 0,
            "<eos>": 1,
            "<bos>": 2,
            "<unk>": 3,
            "<mask>": 4,
            "<|tool>": 46,
            "<tool|>": 47,
        },
        **{"<|tool_call>": 48, "<tool_call|>": 49, "<|tool_response>": 50, "<tool_response|>": 51},
        **{'<|"|>': 52, "<|think|>": 98, "<|channel>": 100, "<channel|>": 101, "<|turn>": 105},
        **{"<turn|>": 106, "<|image>": 255999, "<|audio>": 256000, "<|image|>": 258880},
        **{"<|audio|>": 258881, "<image|>": 258882, "<audio|>": 258883, "<|video|>": 258884},
    }
    assert dict(builtin.control_tokens) == expected
    assert (builtin.pad_id, builtin.eos_id, builtin.bos_id) == (0, 1, 2)
    assert builtin.stop_ids == (1, 106, 50)
    assert builtin.vocab_size == 262144
    assert [builtin.token_id(name) for name in ("thought", "user", "model")] == [45518, 2364, 4368]
    assert builtin.decode([258884]) == "<|video|>"


@settings(max_examples=300, deadline=None)
@given(PROSE)
def test_ordinary_text_never_becomes_a_control_token(
    builtin: Tokenizer, small: Tokenizer, spelling: Tokenizer, text: str
) -> None:
    for tokenizer in (builtin, small, spelling):
        ids = tokenizer.encode(text, control=False)
        assert not set(ids) & set(tokenizer.control_tokens.values())
        assert tokenizer.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(PROSE)
def test_control_tokens_cut_the_text_and_change_nothing_else(
    builtin: Tokenizer, small: Tokenizer, text: str
) -> None:
    for tokenizer in (builtin, small):
        pieces = [
            [token] if token is not None else tokenizer.encode(part, control=False)
            for part, token in tokenizer.split_control(text)
        ]
        ids = tokenizer.encode(text)
        assert ids == [i for piece in pieces for i in piece]
        assert tokenizer.decode(ids) == text
        assert ids.count(tokenizer.token_id("<|turn>")) == text.count("<|turn>")


def test_merges_that_spell_a_control_token_are_cut(spelling: Tokenizer) -> None:
    raw = spelling.backend.encode("a<turn|>b")
    assert spelling.token_id("<turn|>") in raw, "the fixture must be able to spell it"
    ids = spelling.encode("a<turn|>b", control=False)
    assert spelling.token_id("<turn|>") not in ids
    assert spelling.decode(ids) == "a<turn|>b"
    assert spelling.token_id("<turn|>") in spelling.encode("a<turn|>b")


def test_markup_is_whole_only_on_request(builtin: Tokenizer, tmp_path: Path) -> None:
    builtin.save(tmp_path)
    whole = Tokenizer.load(tmp_path / "tokenizer.model", sentencepiece_markup=True)
    assert builtin.encode("<table>") == [236820, 5127, 236813]
    assert whole.encode("<table>") == [168]
    assert whole.encode("[multimodal]") == [5]
    assert whole.encode("<turn|>", control=False) == builtin.encode("<turn|>", control=False)
    text = "<td>x</td>"
    assert whole.decode(whole.encode(text)) == text


def test_markup_of_a_tokenizer_json(spelling: Tokenizer, tmp_path: Path) -> None:
    spec = json.loads(spelling.files["tokenizer.json"])
    spec["model"]["vocab"]["<b>"] = len(spec["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    plain = Tokenizer.load(tmp_path)
    whole = Tokenizer.load(tmp_path, sentencepiece_markup=True)
    assert whole.encode("a<b>") == [whole.token_id("a"), whole.token_id("<b>")]
    assert plain.token_id("<b>") not in plain.encode("a<b>")
    assert whole.eos_id not in whole.encode("<eos>", control=False)


def test_lone_surrogates_become_the_replacement_character(builtin: Tokenizer) -> None:
    assert builtin.decode(builtin.encode("a\ud83db")) == "a\ufffdb"
    assert builtin.decode(builtin.encode("\ud83d\ude42")) == "\U0001f642"


def test_decode_can_leave_control_tokens_out(builtin: Tokenizer) -> None:
    ids = builtin.encode("<bos><|turn>user\nHi<turn|>")
    assert builtin.decode(ids) == "<bos><|turn>user\nHi<turn|>"
    assert builtin.decode(ids, skip_control=True) == "user\nHi"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 349), max_size=30))
def test_stream_adds_up_to_decode(small: Tokenizer, ids: list[int]) -> None:
    stream = small.stream()
    shown = [stream.push(i) for i in ids] + [stream.flush()]
    assert "".join(shown) == small.decode(ids)


def test_stream_holds_back_half_a_character(small: Tokenizer) -> None:
    ids = small.encode("\U0001f642!")
    stream = small.stream()
    shown = [stream.push(i) for i in ids]
    assert shown == ["", "", "", "\U0001f642", "!"]
    stream.push(ids[0])
    assert stream.flush() == "\ufffd"


def test_save_and_load_give_the_same_bytes(
    small: Tokenizer, spelling: Tokenizer, tmp_path: Path
) -> None:
    for tokenizer, name in ((small, "tokenizer.model"), (spelling, "tokenizer.json")):
        folder = tmp_path / name
        tokenizer.save(folder)
        assert (folder / name).read_bytes() == tokenizer.files[name]
        again = Tokenizer.load(folder)
        text = "<|turn>abc<turn|> <turn|"
        assert again.encode(text) == tokenizer.encode(text)


def test_tokenizer_json_goes_before_tokenizer_model(
    small: Tokenizer, spelling: Tokenizer, tmp_path: Path
) -> None:
    small.save(tmp_path)
    spelling.save(tmp_path)
    assert Tokenizer.load(tmp_path).vocab_size == spelling.vocab_size != small.vocab_size
    assert set(Tokenizer.load(tmp_path).files) == {"tokenizer.json", "tokenizer.model"}


def test_names_from_tokenizer_config(spelling: Tokenizer, tmp_path: Path) -> None:
    """Another name for the end of text, and a control token that is marked nowhere else."""
    spec = json.loads(spelling.files["tokenizer.json"])
    renamed = json.loads(json.dumps(spec).replace("<eos>", "<end>"))
    renamed["model"]["vocab"]["@@"] = len(renamed["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(renamed))
    config = {"eos_token": {"content": "<end>"}, "extra_special_tokens": ["@@", "<absent>"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_id == renamed["model"]["vocab"]["<end>"]
    assert tokenizer.eos_id in tokenizer.stop_ids
    assert tokenizer.encode("a@@")[-1] == renamed["model"]["vocab"]["@@"]
    assert "<absent>" not in tokenizer.control_tokens


def test_a_token_that_is_not_there(spelling: Tokenizer, builtin: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"<\|turm>.*did you mean '<\|turn>'"):
        spelling.token_id("<|turm>")
    with pytest.raises(UserError, match="262144 is outside this vocabulary"):
        builtin.decode([262144])
    with pytest.raises(UserError, match="-1 is outside"):
        builtin.decode([-1])


def test_a_control_token_the_vocabulary_lacks_is_text(spelling: Tokenizer) -> None:
    assert "<|think|>" not in spelling.control_tokens
    assert spelling.decode(spelling.encode("<|think|>")) == "<|think|>"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_damaged_files(
    small: Tokenizer, spelling: Tokenizer, tmp_path: Path, name: str, damage: str
) -> None:
    data = {**small.files, **spelling.files}[name]
    data = {"empty": b"", "text": b"not a tokenizer", "half": data[: len(data) // 2]}[damage]
    (tmp_path / name).write_bytes(data)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=rf"{name}.*damaged"):
            Tokenizer.load(path)


def test_paths_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer here; expected tokenizer.json or"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match=r"no such file or folder"):
        Tokenizer.load(tmp_path / "absent")


def test_a_tokenizer_json_of_another_kind(spelling: Tokenizer, tmp_path: Path) -> None:
    spec = json.loads(spelling.files["tokenizer.json"])
    spec["model"] = {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="a Unigram tokenizer is not supported"):
        Tokenizer.load(tmp_path)
    spec = json.loads(spelling.files["tokenizer.json"])
    spec["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="decoder WordPiece is not supported"):
        Tokenizer.load(tmp_path)


@settings(max_examples=100, deadline=None)
@given(PROSE)
def test_byte_level_file_as_the_library_reads_it(shared: Path, text: str) -> None:
    folder = shared / "vectors" / "dpo" / "tokenizer"
    ours, theirs = _byte_level(folder)
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == text
    plain = ours.encode(text, control=False)
    assert ours.decode(plain) == text
    assert not set(plain) & set(ours.control_tokens.values())


_loaded: dict[Path, tuple[Tokenizer, tokenizers.Tokenizer]] = {}


def _byte_level(folder: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    if folder not in _loaded:
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        _loaded[folder] = Tokenizer.load(folder), theirs
    return _loaded[folder]
