"""What a client of NVFlare runs, in a process that stays."""

from __future__ import annotations

import nvflare.client as flare
import torch
from work import IMAGES, Cnn, images, trained


def main() -> None:
    torch.set_num_threads(1)
    flare.init()
    number = int(flare.get_site_name().removeprefix("site-")) - 1
    x, y = images(number)
    model = Cnn()
    while flare.is_running():
        received = flare.receive()
        model.load_state_dict(received.params)
        trained(model, x, y)
        steps = {"NUM_STEPS_CURRENT_ROUND": IMAGES}
        flare.send(flare.FLModel(params=model.state_dict(), meta=steps))


if __name__ == "__main__":
    main()
