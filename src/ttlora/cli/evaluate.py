"""`ttlora evaluate`: the metrics of a finished run, measured again."""

import json as json_format

from ttlora.cli.route import print_evaluation


def evaluate(directory: str, *, model: str | None = None, json: bool = False) -> None:
    """Load the saved adapter of a finished run into its base model and measure it on the run's validation rows.

    Of a router the validation rows of all its experts are measured, which do not tell their task: how many are found,
    and the metrics of the mixture's answers beside those of each expert that is told its rows.

    Args:
        directory: Output folder of ttlora train, or of ttlora route.
        model: Where the base model is now, if it has moved since.
        json: Print one JSON object.
    """
    from ttlora.finetune import finished
    from ttlora.finetune.routed import RoutedExperts, is_router

    if is_router(directory):
        print_evaluation(RoutedExperts.load(directory, model).evaluate(), json)
        return
    evaluation = finished.evaluate(directory, model)
    record = evaluation.record
    if json:
        content = {
            "method": record.method,
            "task": record.task,
            "metrics": evaluation.metrics,
            "primary_metric": record.primary_metric,
            "validation_loss": evaluation.validation_loss,
        }
        print(json_format.dumps(content, indent=2))
        return
    for name, value in evaluation.metrics.items():
        recorded = record.metrics.get(name)
        print(f"{name} {value:.4f}" + ("" if recorded == value else f" (result.json: {recorded})"))
    print(f"validation loss {evaluation.validation_loss:.4f}")
