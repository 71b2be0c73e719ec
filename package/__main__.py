"""Build packages into build/dist: ``./dev package [wheel] [deb] [image]``; without arguments, all.

Every package is made from the wheel, so the wheel is always built.
"""

from __future__ import annotations

import sys

from . import deb, image, wheel
from .common import ROOT

KINDS = {"wheel": None, "deb": deb.build, "image": image.build}


def main(arguments: list[str]) -> int:
    unknown = set(arguments) - set(KINDS)
    if unknown:
        print(f"./dev package: unknown: {' '.join(sorted(unknown))}", file=sys.stderr)
        print(f"choose from {', '.join(KINDS)}", file=sys.stderr)
        return 64
    built = wheel.build()
    for kind, build in KINDS.items():
        if build is not None and (not arguments or kind in arguments):
            built += build()
    for path in built:
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
