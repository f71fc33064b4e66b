"""Draw synthetic chest radiographs in the exact layouts of the four public sources."""

import argparse
import shlex

from cxr_spark import job, sample

EXAMPLES = """examples:
  sample.py --out demo/sources                          40 images a class, in a minute or so
  sample.py --out demo/sources --images-per-class 120
Writes nih, covid, pneumonia and tuberculosis below --out, deterministically by --seed. The traps of
the real sources (broken files, copies, rows without a file, ...) are in there on top of the images
that curation keeps."""


def parser() -> argparse.ArgumentParser:
    """The options of the job."""
    options = job.parser("sample", __doc__, EXAMPLES)
    options.add_argument("--out", required=True, help="folder to make; it may exist if it's empty")
    options.add_argument(
        "--images-per-class", type=int, default=40, help="images of each class that curation keeps"
    )
    options.add_argument("--seed", type=int, default=0, help="of all that is random")
    return options


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Run the job."""
    written = sample.write_sample(
        options.out, options.images_per_class, options.seed, progress=run.progress
    )
    run.counts |= {f"{source}_files": count for source, count in written.files.items()}
    run.counts |= {f"rejects_{reason}": count for reason, count in written.rejects.items()}
    run.outputs |= {source: f"{options.out}/{source}" for source in written.files}
    run.say(f"drew the four sources into {options.out}")
    folders = [part for name in written.files for part in (f"--{name}", f"{options.out}/{name}")]
    run.next_steps.append(shlex.join(["jobs/curate.py", "--warehouse", "warehouse", *folders]))


if __name__ == "__main__":
    job.start("sample", parser(), main, records=False)
