"""Flower's simulation on ray: an actor a core, one thread each, a client's images made once in each actor."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from work import CLIENTS, IMAGES, Clock, Cnn, cores, images, rounds, trained

client, server = ClientApp(), ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    model = Cnn()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    trained(model, *images(int(context.node_config["partition-id"])))
    reply = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": IMAGES})}
    return Message(RecordDict(reply), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    clock = Clock()

    def over(number: int, arrays: ArrayRecord) -> None:
        if number > 0:  # it is asked for the initial model too
            clock.round_over()

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    found = strategy.start(grid, ArrayRecord(Cnn().state_dict()), num_rounds=rounds(), evaluate_fn=over)
    clock.tell(found.arrays.to_torch_state_dict())


if __name__ == "__main__":
    actors = {"num_cpus": cores(), "include_dashboard": False}
    run_simulation(
        server,
        client,
        CLIENTS,
        backend_config={"init_args": actors, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
