"""What command lines hold that no shell line does, and how a case is written.

A case is a command line, its exit code, and words of the sentence that comes with it. Lines are
split as a shell does; those with characters that no shell line holds are lists. {} stands for a
command with what else it needs. The files are those of the playground.
"""

import os

NINES = "9" * 5_000  # more digits than Python turns into a number
DEEP = "x/" * 2_000
RED, RIGHT_TO_LEFT = "\x1b[31mred\x07", "\u202egnp.exe"
NOT_UTF8 = os.fsdecode(b"\xff\xfe-nowhere.pt")

Case = tuple[str | list[str], int, str]
