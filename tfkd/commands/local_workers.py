r"""Starts several workers on this machine, to try out training with workers.

    python -m tfkd.local_workers --workers=2 -- \
        python -m tfkd.train --config=configs/digits.py:method=kd --workdir=runs/workers

Every worker runs the command that follows the two dashes, with the environment variable
`TF_CONFIG` that says who the others are. What the chief, the first of them, prints is shown; of
another worker only where it failed. All end when one fails. The workers compute on CPUs, unless
`CUDA_VISIBLE_DEVICES` lists as many GPUs as there are workers: then each gets its share.
"""

import contextlib
import json
import os
import pathlib
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time

from absl import flags

from tfkd.errors import INTERRUPTED, UsageError, exit_on_usage_error

flags.DEFINE_integer("workers", 2, "How many workers to start.", 1)

#: Seconds that the others have to end by themselves when one has failed or was interrupted.
_PATIENCE = 20.0


def run(command, workers=2):
    """Runs a command in several workers until all have ended.

    Args:
        command: List of strings, the command and its arguments.
        workers: Integer, how many.

    Returns:
        The exit code: 0 if every worker succeeded, otherwise that of the first in their order, the
        chief's if it failed by itself; 128 and the signal's number where a signal ended it.

    Raises:
        UsageError: If the command cannot be started.

    Example:
    ```python
    code = tfkd.local_workers.run(["python", "train.py"], workers=2)
    ```
    """
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = []
        stack.callback(_end, processes)
        interrupted = False
        try:
            for position, environment in enumerate(_environments(workers)):
                output = None
                if position:
                    output = stack.enter_context(open(folder / f"worker{position}", "wb"))
                try:
                    # In a session of its own: Ctrl-C reaches this process, which passes it on once.
                    process = subprocess.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT if position else None,
                        start_new_session=True,
                    )
                except OSError as error:
                    raise UsageError(f"{command[0]} cannot be run: {error.strerror}.") from error
                processes.append(process)
        except KeyboardInterrupt:
            # The first worker may run before the last one is started.
            interrupted = True
        codes = _wait(processes, interrupted)
        failed = next((position for position, code in enumerate(codes) if code), None)
        if failed and codes[failed] != INTERRUPTED:
            text = (folder / f"worker{failed}").read_text(encoding="utf-8", errors="replace")
            print(f"worker {failed} failed; it printed:\n{text[-4000:]}", file=sys.stderr)
    if failed is None:
        # One that had to be ended although none failed was interrupted.
        return INTERRUPTED if interrupted or None in codes else 0
    return codes[failed] if codes[failed] > 0 else 128 - codes[failed]


def _free_port():
    """Returns a socket at a port that is free, below those of outgoing connections.

    The system may give one of the latter to another process before the worker has started.
    """
    while True:
        taken = socket.socket()
        try:
            taken.bind(("localhost", random.randrange(20_000, 32_768)))
        except OSError:
            taken.close()
        else:
            return taken


def _environments(workers):
    """Returns the environment of each worker."""
    with contextlib.ExitStack() as stack:
        # All ports are taken at once, so that none is given twice.
        sockets = [stack.enter_context(_free_port()) for _ in range(workers)]
        addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    share = len(gpus) // workers
    environments = []
    for position in range(workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": position}}
        own = gpus[position * share :][:share] or ["-1"]
        environments.append(
            {
                **os.environ,
                "TF_CONFIG": json.dumps(task),
                "CUDA_VISIBLE_DEVICES": ",".join(own),
            }
        )
    return environments


def _wait(processes, interrupted):
    """Waits until all have ended, or one has failed and the others had time to.

    Args:
        processes: List of those started.
        interrupted: Whether Ctrl-C has come already.

    Returns:
        List of the exit codes; None for those that had to be ended.
    """
    deadline = None
    while True:
        # Ctrl-C may come at any line of the loop.
        try:
            if interrupted:
                interrupted = False
                deadline = deadline or time.monotonic() + _PATIENCE
                _signal(processes, signal.SIGINT)
            if None not in [process.poll() for process in processes]:
                break
            if deadline is None and any(process.returncode for process in processes):
                deadline = time.monotonic() + _PATIENCE
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(0.1)
        except KeyboardInterrupt:
            interrupted = True
    codes = [process.poll() for process in processes]
    _end(processes)
    return codes


def _end(processes):
    """Ends what still runs, by force where it does not end by itself."""
    _signal(processes, signal.SIGTERM)
    for process in processes:
        try:
            process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _signal(processes, number):
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def main():
    """Reads the flags, runs the workers and ends with their exit code."""
    with exit_on_usage_error():
        try:
            _, *command = flags.FLAGS(sys.argv)
        except flags.Error as error:
            raise UsageError(f"{error} The workers' own command follows ' -- '.") from error
        if not command:
            raise UsageError(
                "The workers' command is missing: python -m tfkd.local_workers --workers=2 -- "
                "python -m tfkd.train ..."
            )
        # Ended like by Ctrl-C, so that no worker is left behind.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print(f"{flags.FLAGS.workers} workers: {shlex.join(command)}", flush=True)
        sys.exit(run(command, flags.FLAGS.workers))


if __name__ == "__main__":
    main()
