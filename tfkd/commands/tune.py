r"""Searches the hyperparameters of a config by KerasTuner, and writes the best as a config.

    python -m tfkd.tune --config=configs/digits.py:method=kd --tuner=bayesian --max_trials=20 \
        --executions_per_trial=3 --workdir=runs/tuned

What is searched follows from the method, or is said by --search. The teacher is trained once; the
test split is not read. The same command again resumes.
"""

from absl import flags

from tfkd import command_line
from tfkd.tuner import KINDS, search_space
from tfkd.tuner.study import tune

flags.adopt_module_key_flags(command_line)
flags.DEFINE_enum("tuner", "random", list(KINDS), "How to choose what to try next.")
flags.DEFINE_string(
    "search",
    search_space.DEFAULT,
    "What is searched, keys being those of --config.KEY=: optimizer.learning_rate:log:0.01..0.2,"
    "optimizer.nesterov:True|False,method:kd|kd+at; default: what follows from the method.",
)
flags.DEFINE_integer("max_trials", None, "How many trials, 10 if not given; not for hyperband.", 1)
flags.DEFINE_integer("executions_per_trial", 1, "How many seeds to take the mean over.", 1)
flags.DEFINE_integer("confirm", 3, "Held-out seeds used to retrain the best trial; 0 disables.", 0)
flags.DEFINE_integer("factor", 3, "Hyperband: one of so many trials goes on to longer training.", 2)
flags.DEFINE_integer("iterations", 1, "Hyperband: how often to do all of it.", 1)


def main(config):
    """Runs what the flags say."""
    values = flags.FLAGS
    tune(
        config,
        values.workdir,
        values.tuner,
        values.search,
        values.max_trials,
        values.executions_per_trial,
        values.factor,
        values.iterations,
        values.confirm,
        command=command_line.command("tune"),
    )


if __name__ == "__main__":
    command_line.main(main)
