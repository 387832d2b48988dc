"""Pages of a request: what it takes over, takes, keeps for others and gives back, in the part that it is in.

Not here: which pages there are (`paging.py`), who has to give some back (`scheduler.py`).
"""

from __future__ import annotations

from gemma4_jax.sample.paging import Pools, Prefix
from gemma4_jax.sample.tasks import Task


def take_over(pages: Pools, task: Task, part: int, spare: int) -> Prefix | None:
    """Give it pages of a part for its tokens, the ones that are known already first; None if there are too few.

    spare: pages to leave to others, if there are any.
    """
    mine = pages.parts[part]
    prefix = mine.find(task.tokens)
    mine.reuse(prefix, task.tokens)
    wanted = _pages_for(len(task.tokens), pages.size) - len(prefix.pages)
    for_beams = 0 if task.beams is None else task.beams.pages_wanted(pages.size)
    enough = wanted + for_beams + spare <= mine.available
    fresh = mine.take(wanted + for_beams) if enough or not spare else None
    if fresh is None:
        mine.release(prefix.pages)
        return None
    task.part, task.pages, task.held = part, [*prefix.pages, *fresh[:wanted]], prefix.tokens
    if task.beams is not None:
        task.beams.spare = fresh[wanted:]
    return prefix


def grow(pages: Pools, task: Task, positions: int) -> bool:
    """Pages for so many positions; False, and nothing happens, if there are not so many."""
    wanted = _pages_for(positions, pages.size) - len(task.pages)
    if wanted <= 0:
        return True
    fresh = pages.parts[task.part].take(wanted)
    if fresh is None:
        return False
    task.pages += fresh
    return True


def keep(pages: Pools, task: Task, *, evict: bool = True) -> int | None:
    """Remember its pages for prompts that begin alike; where its rings must go for that, or None."""
    return pages.parts[task.part].keep(task.tokens[: task.held], task.pages, evict=evict)


def give_back(pages: Pools, task: Task) -> None:
    """It holds nothing any more."""
    mine = pages.parts[task.part]
    if task.beams is not None:
        mine.release(task.beams.spare)
        task.beams.spare = []
    mine.release(task.pages)
    task.pages, task.held = [], 0


def _pages_for(positions: int, size: int) -> int:
    return -(-positions // size)
