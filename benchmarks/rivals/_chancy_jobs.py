"""chancy's handlers, which it imports by name."""

# pyright: basic, reportMissingImports=false

from chancy import job

HERE = {}


@job(queue="bench")
async def noop(*, text: str):
    HERE["tally"].note()


@job(queue="bench")
async def noted(*, number: int):
    HERE["tally"].noted(number)
