"""A stand-in for `dit-shd` that leaves the files of each command at once, for tests of what a study does with them.

A config can ask it to fail (`tracker: fails`, once: `fails_once`) or to last (`tracker: lasts`, unless there is a file
called go). The figure is 10 * weight of the second loss + seed.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import yaml


def main(command, first, *assignments):
    keys = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in assignments)}
    if command == "train":
        train(yaml.safe_load(Path(first).read_text()), Path(first))
    elif command == "sample":
        np.savez(keys["out"], arr_0=np.full((4, 8, 8, 1), keys["seed"], dtype=np.uint8))
        record = {"model_sha256": content_of("weights"), "prompts": content_of("prompts").split("\n")}
        record["vae_sha256"] = content_of("vae")
        Path(keys["out"]).with_suffix(".json").write_text(json.dumps(record))
    elif command == "evaluate":
        file = Path(first).parent / "run" / "config.yaml"
        config = yaml.safe_load(file.read_text()) if file.exists() else {"losses": [], "seed": -1}
        weight = config["losses"][1]["weight"] if len(config["losses"]) > 1 else 0
        figures = {"FD(x)": 10 * weight + config["seed"], "IS(x)": 1.0, "IS(x) std": 0.5}
        record = {"reference": of_reference(keys["reference"]), "features": {"sha256": content_of("network")}}
        Path(keys["out"]).write_text(json.dumps({"figures": figures, **record}))
    elif command == "statistics":
        content = Path(first).read_text() if Path(first).is_file() else ""
        if Path(keys["out"]).exists() and not keys.get("force"):
            print(f"dit-shd statistics: {keys['out']}: is there already", file=sys.stderr)
            sys.exit(2)
        Path(keys["out"]).write_text(f"statistics {content}".strip())


def of_reference(reference):
    return {"path": reference, "sha256": Path(reference).read_text() if Path(reference).is_file() else reference}


def train(config, file):
    name, mark = config.get("tracker"), file.with_name("failed")
    if name == "fails" or (name == "fails_once" and not mark.exists()):
        mark.touch()
        print("dit-shd train: data fails: wanted data, found none", file=sys.stderr)
        sys.exit(2)
    if name == "lasts" and not Path("go").exists():
        file.with_name("begun").touch()
        time.sleep(60)
    run = Path(config["run"])
    run.mkdir(exist_ok=True)
    if (run / "config.yaml").exists() and yaml.safe_load((run / "config.yaml").read_text()) != config:
        print("dit-shd train: already holds a run with another config", file=sys.stderr)
        sys.exit(2)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    inputs = {"teachers": {"teacher": content_of("weights")}, **json.loads(content_of("inputs") or "{}")}
    (run / "inputs.json").write_text(json.dumps(inputs))
    if config.get("from"):
        (run / "from.json").write_text(json.dumps({"weights": content_of("start")}))
    steps, every = config.get("steps", 100), config.get("validate_every")
    if every:
        (run / "evaluations.jsonl").write_text(json.dumps({"step": steps // every * every, "FD(x)": 1.0}) + "\n")
    rows = [{"step": step, "loss": 1.0, "plain/noise": 1 / step} for step in range(1, 101)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def content_of(name):
    return Path(name).read_text() if Path(name).exists() else ""


if __name__ == "__main__":
    with open("calls", "a") as calls:
        calls.write(" ".join(sys.argv[1:]) + "\n")
    main(*sys.argv[1:])
