"""Train the calculator: text in, a run folder out.

python experiments/train.py                # the default model, about a minute on two CPU cores: 99.74 % held out
python experiments/train.py --split none   # hold nothing out: all or all but one of 11,344 answers are right
python experiments/train.py --ops plus minus --max-number 20 --run-dir runs/small
python experiments/train.py --resume runs/calculator                 # go on after a stop or a kill
python experiments/train.py --resume runs/calculator --steps 2000    # go on for longer
python experiments/train.py --fork runs/calculator@290 --seed 1 --run-dir runs/fork

Below is the whole of training. The lines with `session` make a run survive; without them it trains all the same.
"""

import functools
import json
import sys
import time

from rich.console import Console

import jaxcalc
from jaxcalc.runs import cli, report, results
from jaxcalc.runs.config import CHUNK
from jaxcalc.runs.options import TrainOptions, configure, defaults
from jaxcalc.runs.session import open_session
from jaxcalc.scale import processes

CHECKS = 30
"""How often the held-out problems are decoded during a run."""


def main(options: TrainOptions) -> int:
    started = time.perf_counter()
    config, path = configure(options), options.path
    schedule, last = config.schedule, config.schedule.steps
    n_steps = schedule.schedule_steps or last

    # What is learned, by which model, with which optimizer.
    task = config.make_task()
    tx, apply_fn = config.make_optimizer(), config.make_apply_fn()

    def start() -> jaxcalc.TrainState:
        params = jaxcalc.init(schedule.seed, config.make_model())
        return jaxcalc.create_state(params, tx, apply_fn)

    # Ten steps per call, each of them: a batch, forward, loss, backward, update.
    n_parts = config.computing.microbatches
    steps = functools.partial(
        jaxcalc.train_steps,
        n_steps=CHUNK,
        batch_size=schedule.batch_size,
        loss_on=schedule.loss_on,
        step_fn=jaxcalc.train_step if n_parts == 1 else jaxcalc.in_microbatches(n_parts),
    )

    console = Console(stderr=options.json)
    watched, rows = results.watched_rows(task)
    with open_session(path, config, resume=bool(options.resume), overwrite=options.overwrite) as session:
        start, steps = session.prepare(start, steps, task)
        state = start()
        results.print_beginning(console, state.params, task, session.compiled)
        untrained = results.copied(processes.whole(state.params))
        seconds: dict[str, float | None] = {"compile": 0.0}
        seconds["compile"] = session.compiled.seconds

        clock, first_step = time.perf_counter(), int(state.step)
        with report.ProgressLine(last, schedule.batch_size, watched) as progress:
            while int(state.step) < last:
                first = int(state.step) // CHUNK * CHUNK
                state, metrics = steps(state, task, seed=schedule.seed, stop=min(first + CHUNK, last))
                step, match = int(state.step), None
                seconds.setdefault("first_step", results.process_seconds())
                if step * CHECKS // n_steps > first * CHECKS // n_steps:
                    evaluation = jaxcalc.evaluate(processes.whole(state.params), task, rows)
                    match = evaluation.exact_match
                    session.log(results.check_row(step, watched, evaluation, time.perf_counter() - started))
                progress.update(step, metrics["loss"], match)
                session.keep(state, first)
            seconds["train"] = time.perf_counter() - clock
            session.end()

        # The end: what the trained model answers.
        params = processes.whole(state.params)
        ended = results.measure(config, task, untrained, params, first_step, seconds, started)
        result = ended.summary
        if processes.is_main():
            result = results.write(session.path, config, task, params, ended)
        results.print_results(console, path, config, task, ended)
    if session.stopped:
        result = {"steps": session.steps_done, "stopped": session.stopped}
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    return session.status


if __name__ == "__main__":
    sys.exit(cli.run_script(main, TrainOptions, defaults))
