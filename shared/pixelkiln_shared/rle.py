"""COCO's run-length code of a mask, read (maskApi.c of cocoapi): five bits a character, low ones first."""

from __future__ import annotations

CODE_BITS, CODE_MASK, SIGN_BIT, MORE_BIT = 5, 0x1F, 0x10, 0x20
FIRST_CODE = ord("0")


def lengths(counts: str) -> list[int]:
    """Return the lengths of the runs down the columns, the first of them background.

    From the fourth on, a run is told as the difference to the run two before.

    Raises:
        ValueError: the text is no such code.
    """
    found: list[int] = []
    value = shift = 0
    for character in counts.encode("ascii"):
        code = character - FIRST_CODE
        if not 0 <= code <= CODE_MASK | MORE_BIT:
            raise ValueError("a character is none of the code's")
        value |= (code & CODE_MASK) << shift
        shift += CODE_BITS
        if code & MORE_BIT:
            continue
        if code & SIGN_BIT:
            value -= 1 << shift
        found.append(value + (found[-2] if len(found) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("the code ends within a number")
    return found
