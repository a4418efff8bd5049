"""A run's progress as a bar: tqdm's, on stderr, or a widget where a notebook has ipywidgets.

bar = Bar()
bar({"step": 1, "loss": 2.3, "tokens_per_second": 900.0, "max_steps": 340, ...})   # an entry of the log
bar.close()
"""


class Bar:
    """Loss, target tokens a second, time left; the loss of the last evaluation."""

    def __init__(self):
        self._bar = None

    def __call__(self, entry: dict):
        from tqdm.auto import tqdm

        if self._bar is None:
            total, done = entry["max_steps"], entry["step"] - 1  # a resumed run begins in the middle
            self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)
        shown = {"loss": f"{entry['loss']:.3f}", "tokens/s": f"{entry['tokens_per_second']:.0f}"}
        if "eval_loss" in entry:
            shown["validation"] = f"{entry['eval_loss']:.3f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def close(self):
        if self._bar is not None:
            self._bar.close()
            self._bar = None
