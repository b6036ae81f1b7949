"""Measures what each method does to the demo model, in llama.cpp, and writes docs/methods.md and its plots of it.

python scripts/make_methods.py --training OUT/training.json --yarn4 OUT/yarn4   # measure all: docs/methods.json
python scripts/make_methods.py --again "two threads=OTHER/base"   # measure this one, trained again, besides
python scripts/make_methods.py --page     # write the page, its plots and the model cards anew from docs/methods.json
python scripts/make_methods.py --check    # exit 1 where they do not follow from the JSON

Every GGUF is written by the command line, from the checkpoints in the package; YARN4 is the fine-tune at ×4 that
`train_demo.py` makes and that is not shipped. What is measured is in `methods_measure`, what is said in `methods_page`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import methods_page

from yarn_gguf.demo import MODELS, demo_model

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yarn4", type=Path)
    parser.add_argument("--again", nargs="*", default=[], metavar="HOW=FOLDER", help="base models trained again")
    parser.add_argument("--training", type=Path, help="what train_demo.py wrote beside the models")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    figures, page = DOCS / "methods.json", DOCS / "methods.md"
    if not given.page and not given.check:
        import methods_measure

        if given.training is not None:
            found = methods_measure.measure(given.yarn4)
            found["training"] = json.loads(given.training.read_text(encoding="utf-8"))
        else:
            found = json.loads(figures.read_text(encoding="utf-8"))
        if given.again:
            ways = dict(each.split("=", 1) for each in given.again)
            found["bases"] = methods_measure.measure_bases({how: Path(folder) for how, folder in ways.items()})
        figures.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    found = json.loads(figures.read_text(encoding="utf-8"))
    texts = {page: methods_page.page(found)}
    texts |= {demo_model(name) / "README.md": methods_page.card(found, name) for name in MODELS}
    if given.check:
        stale = [path.name for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
        print(f"stale: {', '.join(stale)}: python scripts/make_methods.py --page" if stale else "fresh")
        return int(bool(stale))
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    methods_page.plots(found, DOCS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
