"""A sweep as a Prefect flow: what `mgm-lora sweep` does, one task run per trial.

`prefect deployment run sweep/by-hand --param name=learning-rates` starts it on a worker. Killed, it goes on where it was when it is run again:
what is done is Cached. It knows no sweep by name.
"""

from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.worker_process import end_with_worker
from mgm_lora.errors import SweepError
from mgm_lora.stages.sweep import apply_best, check_winners, summary_lines
from mgm_lora.stages.sweep_runner import open_sweep
from tasks.trials import INTERRUPTED, run_trial, show_sweep


@flow(persist_result=False)
def sweep(name: str, evaluate: bool = False, retry: bool = False, apply: bool = False) -> State[Any]:
    """Searches settings of arms by held-out loss, one trial after the other.

    Args:
        name: Of a file in sweeps/, without its ending: learning-rates, ranks, or one of your own.
        evaluate: Ask every trained trial the questions too: scores beside the loss.
        retry: Run trials again that failed by themselves.
        apply: In the end write the best trial of each arm into params.yaml.
    """
    end_with_worker()
    log = get_run_logger()
    with open_sweep(name, evaluate=evaluate, retry=retry) as going:
        for trial in going.trials:
            state = run_trial(going, trial, label=str(trial), return_state=True)
            if state.name == INTERRUPTED:
                return Failed(message=str(state.message))
        going.write()
        show_sweep(going.result, log=log)
    lines = summary_lines(going.result)
    try:
        check_winners(going.result)
        lines += apply_best(going.result) if apply else []
    except SweepError as error:
        return Failed(message="\n".join([*lines, str(error)]))
    for line in lines:
        log.info("%s", line)
    return Completed(message="\n".join(lines))
