"""The whole experiment on captioned digits by the commands of docs/text-to-image.md, against a clock.

    python experiments/captioned_digits/run.py OUT --seconds 530

Run from the root of a checkout, with data/captioned_digits_images, data/captioned_digits_held_out (images.py) and
data/captioned_digits_pipeline (pipeline.py) there. Encodes, trains the teacher until its share of the time is over,
then four recipes of students with three seeds each, some at once, for as many steps as the slowest recipe can take in
the rest of the time; samples and reads each. OUT gets rows.jsonl (a row a model, as they come), teacher.safetensors
(float16) and runs.tar (samples, grids, logs, configs, metrics). What fails is a row with its log's last lines.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA, RUNS, LOGS = Path("data"), Path("runs"), Path("logs")
PIPELINE, HELD_OUT = DATA / "captioned_digits_pipeline", DATA / "captioned_digits_held_out"
TEACHER = RUNS / "captioned_digits_teacher"
RECIPES = {
    "shd_joint": "[{name: output}, {name: shd, weight: 0.1}]",
    "shd_image": "[{name: output}, {name: shd, weight: 0.1, block: image}]",
    "output": "[{name: output}]",
    "feature": "[{name: output}, {name: feature, weight: 0.1, normalise: true}]",
}
"""Losses of the students, the costliest first: the steps of all follow from their speed."""
SEEDS = (0, 1, 2)
KEPT = (".log", ".json", ".jsonl", ".yaml", ".png")
"""Files that runs.tar has; images are in grids."""
STREAMED = (("name: shd,", "name: shd, backend: streamed,"),)
"""Where the kernels that SHD picks itself do not run."""


@dataclass
class Job:
    """A command of dit_shd with its log, and how far its run folder's metrics are."""

    name: str
    command: list[str]
    folder: Path | None = None
    seen: list[tuple[float, int]] = field(default_factory=list)
    """Seconds since the start, step."""
    code: int | None = None
    seconds: float = 0.0

    def start(self) -> None:
        """Begin."""
        LOGS.mkdir(exist_ok=True)
        self.begun = time.monotonic()
        with (LOGS / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            self.look()
            time.sleep(0.3)

    def wait(self, until: float, patience: float = 20.0) -> "Job":
        """Until it ends; at a time it is asked to save and end, and after some seconds more it is killed."""
        while self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.2)
        for stop in (self.process.terminate, self.process.kill):
            if self.process.poll() is None:
                stop()
                try:
                    self.process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
        self.look()
        self.code, self.seconds = self.process.returncode, time.monotonic() - self.begun
        say(
            f"{self.name}: ended with {self.code} after {self.seconds:.0f} s, step {self.step}, {self.rate:.1f} steps/s"
        )
        return self

    def look(self) -> None:
        """Note the last step of the run's metrics."""
        file = None if self.folder is None else self.folder / "metrics.jsonl"
        if file is None or not file.is_file():
            return
        lines = file.read_bytes().splitlines()
        for line in reversed(lines):
            try:
                step = int(json.loads(line)["step"])
            except (ValueError, KeyError):
                continue
            if not self.seen or step > self.seen[-1][1]:
                self.seen.append((time.monotonic() - self.begun, step))
            return

    @property
    def step(self) -> int:
        return self.seen[-1][1] if self.seen else 0

    @property
    def rate(self) -> float:
        """Steps a second, between the first and the last note."""
        if len(self.seen) < 2:
            return 0.0
        (t0, s0), (t1, s1) = self.seen[0], self.seen[-1]
        return (s1 - s0) / max(t1 - t0, 1e-9)

    @property
    def about(self) -> dict[str, float | None]:
        """What came of a training."""
        return {"steps": self.step, "steps_per_second": self.rate, "seconds": self.seconds, "exit": self.code}

    @property
    def tail(self) -> str:
        """The last words of its log."""
        return (LOGS / f"{self.name}.log").read_text(errors="replace")[-600:]


def say(text: str) -> None:
    """A line with the time."""
    print(f"[{time.monotonic() - BEGUN:6.1f} s] {text}", flush=True)


def dit_shd(*words: str) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "dit_shd", *words]


class Experiment:
    """One pass through everything.

    Args:
        out: The folder of what comes back.
        options: Of the command line.
    """

    def __init__(self, out: Path, options: argparse.Namespace):
        self.out, self.options = out, options
        self.swaps: tuple[tuple[str, str], ...] = ()
        self.lock = threading.Lock()
        out.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds until the end."""
        return BEGUN + self.options.seconds - time.monotonic()

    def row(self, **values: object) -> None:
        """Keep a row, and pack what is there."""
        with self.lock:
            with (self.out / "rows.jsonl").open("a") as file:
                file.write(json.dumps(values) + "\n")
            self.pack()

    def pack(self) -> None:
        """Write runs.tar, without weights but those of the first seed's students."""
        new = self.out / "runs.tar.new"
        with tarfile.open(new, "w:gz", compresslevel=5) as tar:
            for file in sorted([*Path().glob("logs/*"), *Path().glob("samples/*"), *Path().glob("runs/*/*")]):
                if file.is_file() and file.suffix in KEPT:
                    tar.add(file)
            for file in Path().glob("runs/*seed0*/student.safetensors"):
                tar.add(file)
        if new.stat().st_size < self.options.tar_mib * 2**20:
            os.replace(new, self.out / "runs.tar")
        else:
            say(f"runs.tar would be {new.stat().st_size} bytes and is left as it was")
            new.unlink()

    def encode(self) -> None:
        """Latents and embeddings of both sets."""
        jobs = []
        for images, out in (("images", "captioned_digits"), ("held_out", "captioned_digits_held_out_latents")):
            words = [f"images={DATA / f'captioned_digits_{images}'}", f"pipeline={PIPELINE}", f"out={DATA / out}"]
            words += ["size=56", "text_tokens=12", "batch_size=128", f"workers={self.options.workers}"]
            jobs.append(Job(f"encode_{images}", dit_shd("encode", *words)))
        for job in jobs:
            job.start()
        for job in jobs:
            job.wait(time.monotonic() + self.left() / 2)
            if job.code:
                self.row(model=job.name, error=job.tail)

    def teacher(self) -> None:
        """Train it until its time is over."""
        if self.options.teacher:
            return
        words = [str(HERE / "teacher.yaml"), *self.options.teacher_set]
        job = Job("train_teacher", dit_shd("train", *words), TEACHER)
        job.start()
        job.wait(time.monotonic() + self.options.teacher_seconds, 60)
        self.row(model="teacher", seed=0, trained=job.about, error=None if job.step else job.tail)
        half_precision(TEACHER, self.out / "teacher.safetensors")

    def students(self) -> None:
        """Train, sample and read all, in two waves."""
        names = [(recipe, seed) for recipe in RECIPES for seed in SEEDS]
        with ThreadPoolExecutor(16) as readers:
            for guidance in [] if self.options.teacher else self.options.guidances:
                readers.submit(self.judge, "teacher", 0, TEACHER, guidance)
            steps = self.calibrated(names[: self.options.at_once])
            say(f"students take {steps} steps each")
            while names:
                wave, names = names[: self.options.at_once], names[self.options.at_once :]
                jobs = {one: self.student(*one, steps) for one in wave}
                until = time.monotonic() + max(self.left() - 30, 30)
                for job in jobs.values():
                    job.start()
                for (recipe, seed), job in jobs.items():
                    job.wait(until)
                    about = job.about
                    if job.step < steps or job.code:
                        self.row(model=recipe, seed=seed, trained=about, error=job.tail)
                    if job.step and job.folder is not None:
                        readers.submit(self.judge, recipe, seed, job.folder, self.options.guidances[0], about)

    def student(self, recipe: str, seed: int, steps: int, prefix: str = "") -> Job:
        """The training of one."""
        losses, folder = RECIPES[recipe], RUNS / f"{prefix}{recipe}_seed{seed}"
        for old, new in self.swaps:
            losses = losses.replace(old, new)
        teacher = [f"teacher={self.options.teacher}"] if self.options.teacher else []
        words = [
            *teacher,
            f"run={folder}",
            f"losses={losses}",
            f"seed={seed}",
            f"steps={steps}",
            f"validate_every={steps}",
            *self.options.student_set,
        ]
        return Job(f"train_{folder.name}", dit_shd("train", str(HERE / "student.yaml"), *words), folder)

    def calibrated(self, names: list[tuple[str, int]]) -> int:
        """Steps that a wave of the costliest students can take in its time, by short runs that are thrown away."""
        if self.options.steps:
            return self.options.steps
        jobs = [self.student(recipe, seed, 10**6, f"calibration{len(self.swaps)}_") for recipe, seed in names]
        for job in jobs:
            job.start()
        until = time.monotonic() + 75
        while time.monotonic() < until and any(job.process.poll() is None and job.step < 100 for job in jobs):
            time.sleep(0.2)
        for job in jobs:
            if job.process.poll() is None:
                job.process.kill()
            job.wait(0)
        if any(job.rate == 0 for job in jobs) and not self.swaps:
            failed = next(job for job in jobs if job.rate == 0)
            self.row(model="calibration", error=failed.tail)
            self.swaps = STREAMED
            return self.calibrated(names)
        rate, startup = min(job.rate for job in jobs), max(job.seen[0][0] if job.seen else 30.0 for job in jobs)
        waves = -(-len(RECIPES) * len(SEEDS) // len(names))
        seconds = (self.left() - 45) / waves - startup - 3
        self.row(model="calibration", rates=[job.rate for job in jobs], startup=startup, seconds_of_a_wave=seconds)
        return max(50, int(rate * seconds * 0.9) // 50 * 50)

    def judge(
        self, model: str, seed: int, run: Path, guidance: float, about: dict[str, float | None] | None = None
    ) -> None:
        """Sample held-out prompts, and read them."""
        try:
            name = f"{model}_seed{seed}_guidance{guidance:g}"
            out, prompts = Path("samples") / f"{name}.npz", DATA / "captioned_digits_held_out.prompts.txt"
            out.parent.mkdir(exist_ok=True)
            words = [str(run), f"prompts={prompts}", f"count={self.options.prompts}", f"out={out}"]
            words += [f"steps={self.options.sampling_steps}", f"guidance={guidance}", "batch_size=100"]
            scores = out.with_suffix(".scores.json")
            read = [sys.executable, str(HERE / "read.py"), str(out), f"{HELD_OUT}.json"]
            read += ["--real", f"{HELD_OUT}.npz", "--out", str(scores)]
            for job in (Job(f"sample_{name}", dit_shd("sample", *words)), Job(f"read_{name}", read)):
                job.start()
                job.wait(time.monotonic() + max(self.left() - 2, 20), 5)
                if job.code:
                    self.row(model=model, seed=seed, guidance=guidance, error=job.tail, trained=about)
                    return
            if seed == 0 and about is not None:
                half_precision(run, run / "student.safetensors")
            values = json.loads(scores.read_text())
            loss = held_out_loss(run)
            self.row(model=model, seed=seed, guidance=guidance, **values, held_out=loss, trained=about)
        except Exception as error:  # one that fails does not lose the others
            self.row(model=model, seed=seed, guidance=guidance, error=repr(error))


def held_out_loss(run: Path) -> dict[str, float] | None:
    """The last figures on held-out pictures of a run."""
    file = run / "evaluations.jsonl"
    return json.loads(file.read_text().splitlines()[-1]) if file.is_file() else None


def half_precision(run: Path, out: Path) -> None:
    """Write the averaged weights of a run in float16."""
    script = (
        "import sys; from pathlib import Path; from safetensors.torch import load_file, save_file\n"
        "from dit_shd.core.pretrained import model_folder\n"
        "folder = model_folder(Path(sys.argv[1])); file = next(folder.glob('*.safetensors'))\n"
        "save_file({name: x.half().contiguous() for name, x in load_file(file).items()}, sys.argv[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(run), str(out)], capture_output=True, text=True)
    if done.returncode:
        say(f"{out}: {done.stderr[-500:]}")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Run the experiment on captioned digits.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=530)
    parser.add_argument("--teacher-seconds", type=float, default=215)
    parser.add_argument("--teacher", default="", help="a trained one's place; empty: train it")
    parser.add_argument("--at-once", type=int, default=6)
    parser.add_argument("--steps", type=int, default=0, help="of the students; 0: as many as the time allows")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--guidances", type=float, nargs="+", default=[2.0, 1.0, 3.0, 5.0])
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--tar-mib", type=float, default=10)
    parser.add_argument("--teacher-set", nargs="*", default=[], help="more settings of the teacher's training")
    parser.add_argument("--student-set", nargs="*", default=[])
    options = parser.parse_args()
    experiment = Experiment(options.out.resolve(), options)
    for stage in (experiment.encode, experiment.teacher, experiment.students):
        try:
            stage()
        except Exception as error:
            experiment.row(model=stage.__name__, error=repr(error))
    experiment.pack()
    say("done")


BEGUN = time.monotonic()
if __name__ == "__main__":
    main()
