"What the README shows runs as it stands."
import re
from pathlib import Path

import torch

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_runs():
    flow, repair, locate = re.findall(r"```python\n(.*?)```", README, re.S)
    names = dict(my_dataset=torch.utils.data.TensorDataset(torch.rand(40, 3, 4), torch.arange(40) % 2))
    exec(flow, names)
    assert names["run"].frame().shape[0] == 3 * 4 and names["run"].rows.shape[0] == 3 * 3
    names |= dict(net=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2)), test=names["data"])
    exec(repair, names)
    assert len(names["run"].time) == 21 and names["better"](names["data"].x).shape == (40, 2)
    names["net"][1:].apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    exec(locate, names | dict(suspects=names["data"].is_noisy))


def test_files_that_it_names_are_there():
    for path in re.findall(r"\]\(([\w/.-]+)\)", README): assert (Path(__file__).parents[1] / path).exists(), path
