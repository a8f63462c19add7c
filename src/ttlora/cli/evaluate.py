"""`ttlora evaluate`: the metrics of a finished run, measured again."""

import json as json_format


def evaluate(directory: str, *, model: str | None = None, json: bool = False) -> None:
    """Load the saved adapter of a finished run into its base model and measure it on the run's validation rows.

    Args:
        directory: Output folder of ttlora train.
        model: Where the base model is now, if it has moved since.
        json: Print one JSON object.
    """
    from ttlora.finetune import finished

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
