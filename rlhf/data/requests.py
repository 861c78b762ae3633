"""``python -m rlhf.data.requests FILE``: short everyday requests to an assistant, as JSON lines.

Each row has a ``prompt``: a form of request and what it is about, «Explain how bread is baked.» They ask for
a few sentences of prose that any small model can write, so that constraints of ``python -m
rlhf.data.instructions`` are all that is hard about them. The file is always the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

FORMS = {
    "Describe {} to a child.": "things",
    "Write a short advertisement for {}.": "things",
    "Say what you like about {}.": "things",
    "Write a few words of praise for {}.": "things",
    "Give some advice on {}.": "activities",
    "Say why people enjoy {}.": "activities",
    "Describe an afternoon of {}.": "activities",
    "Warn a beginner of the dangers of {}.": "activities",
    "Explain how {}.": "processes",
    "Tell a friend how {}.": "processes",
}
"""Forms of requests, and what each is about."""
SUBJECTS = {
    "things": """a bicycle|the moon|a rainy day|an old library|a lighthouse|a garden|a violin
        |a cup of tea|a train station|a snowy mountain|a busy market|a loaf of bread
        |a wooden chair|the sea|a warm coat|a good dictionary|a puppy|a paper map
        |a small village|a telescope|a summer night|a museum|a kitchen knife
        |a hot air balloon|a pair of boots|a hive of bees|a desert|a harbour
        |a clock tower|an apple tree""",
    "activities": """swimming in a lake|learning a language|cooking for friends|baking bread
        |riding a horse|walking in the woods|playing chess|repairing old furniture
        |growing vegetables|sailing|painting a wall|camping in the mountains
        |keeping bees|reading aloud|taking photographs|running long distances
        |playing the piano|fishing|watching birds|driving at night|climbing rocks
        |writing letters|skiing|singing in a choir|knitting|visiting a foreign city
        |dancing|looking after a cat|saving money|studying for an exam""",
    "processes": """bread is baked|a candle is made|rain forms|a letter is delivered|cheese is made
        |a plant grows|ice melts|paper is recycled|honey is made|a bridge is built
        |a bicycle is steered|wine is stored|coffee is brewed|a book is printed
        |wool becomes cloth|a seed becomes a tree|salt is won from the sea|a boat floats
        |the seasons change|a fire is put out|a song is recorded|glass is made
        |birds find their way|a tooth is filled|a lock opens|a river reaches the sea
        |a rainbow appears|milk turns sour|a house is heated|an orchestra rehearses""",
}


def requests() -> list[str]:
    """Every form with every subject, in the order of a hash."""
    found = [
        form.format(subject.strip())
        for form, kind in FORMS.items()
        for subject in SUBJECTS[kind].replace("\n", " ").split("|")
    ]
    return sorted(found, key=lambda request: hashlib.sha256(request.encode()).hexdigest())


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file and say how many rows it has."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf.data.requests", description="Write short requests to an assistant."
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    rows = [json.dumps({"prompt": request}) + "\n" for request in requests()]
    options.file.parent.mkdir(parents=True, exist_ok=True)
    options.file.write_text("".join(rows), encoding="utf-8")
    sys.stdout.write(f"{options.file}: {len(rows)} rows\n")


if __name__ == "__main__":
    main()
