# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of what reads COCO files and writes labels; see CONTRIBUTING.md.

Every other input is a file as it stands, the rest decide what the property-based test draws.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["mal_mmdet.labeling", "mal_mmdet.datasets"]):
    import mal_mmdet  # noqa: F401

from hypothesis import given

from tests.conftest import tiny_config
from tests.hostile import NAMES, SIZE, Labeler
from tests.labeling.test_hostile_files import files, options


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    labeler = Labeler(folder, tiny_config(folder, folder, **{"model.thresholds": 0.5}))
    logging.disable(logging.WARNING)

    @given(content=files(), options=options)
    def structured(content: dict, options: dict) -> None:
        labeler.label(json.dumps(content).encode(), **options)

    def fuzz(data: bytes) -> None:
        if data[:1] < b"\x80":
            labeler.label(data)
        else:
            structured.hypothesis.fuzz_one_input(data[1:])

    seeds = folder / "seeds"
    seeds.mkdir()
    width, height = SIZE
    image = dict(id=1, file_name=NAMES[0], width=width, height=height)
    ann = dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 9.5, 8], iscrowd=0, area=76.0)
    crowd = ann | dict(id=2, iscrowd=1, segmentation=dict(counts=[384], size=[height, width]))
    coco = dict(images=[image], annotations=[ann, crowd], categories=[dict(id=1, name="é")])
    (seeds / "whole").write_text(json.dumps(coco))
    (seeds / "empty").write_text('{"images": [], "annotations": [], "categories": []}')
    (seeds / "drawn").write_bytes(b"\x80" + bytes(range(256)) * 8)
    atheris.Setup([*sys.argv, str(seeds)], fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
