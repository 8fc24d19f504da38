"""Make a picture of a prompt and take it apart: `python examples/generate_and_segment.py "a red house" out/`.

Needs a server: `pixelkiln up`, or PIXELKILN_URL (and PIXELKILN_API_KEY) for one elsewhere.
"""

import sys
from pathlib import Path

from pixelkiln import Client


def main(prompt: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with Client() as client:
        scene = client.generate(prompt, seed=7)
        masks = client.segment(scene)  # waits for the scene by itself: nothing is downloaded in between

        picture = scene.result(timeout_s=300).images[0]
        print(picture.save(folder / "scene.png"))

        found = masks.result(timeout_s=300)
        for artifact in found.masks + found.overlays + found.cutouts:
            print(artifact.save(folder / artifact.filename("scene")))

        (annotations,) = found.annotations  # COCO: categories, boxes, run-length masks
        names = {category["id"]: category["name"] for category in annotations.json()["categories"]}
        for thing in annotations.json()["annotations"]:
            print(f"{names[thing['category_id']]:12} at {thing['bbox']}, {thing['area']:.0f} pixels")


if __name__ == "__main__":
    main(
        prompt=sys.argv[1] if len(sys.argv) > 1 else "a red house in the snow at night with mountains",
        folder=Path(sys.argv[2] if len(sys.argv) > 2 else "out"),
    )
