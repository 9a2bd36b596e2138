"""A reader gets each of its news once, whatever had its turn before it."""

from __future__ import annotations

import asyncio

from engine.core.messages import CoreOutput
from engine.server.link.mailbox import Mailbox


def output(token: int) -> CoreOutput:
    return CoreOutput(request_id="a", token_ids=[token])


def test_news_that_were_read_before_they_are_handed_over_are_not_handed_over_again():
    """Of more than some tens of readers, the rest get their news in a later turn of the loop; one
    of them may have read what it has by then, and have asked for what follows."""

    async def run() -> list[list[CoreOutput]]:
        mailbox, taken = Mailbox(), []

        def take(outputs: list[CoreOutput]) -> bool:
            taken.append(outputs)
            return len(taken) < 3

        first, second, third = map(output, range(3))
        mailbox.put(first)
        taken.append(await mailbox.take())
        flowing = asyncio.create_task(mailbox.flow(take))
        await asyncio.sleep(0)
        mailbox.hand_over(0.0)
        mailbox.put(second)
        mailbox.hand_over(0.0)
        await asyncio.sleep(0)
        assert not flowing.done()
        mailbox.put(third)
        mailbox.hand_over(0.0)
        await asyncio.wait_for(flowing, timeout=5)
        return taken

    assert [[o.token_ids for o in outputs] for outputs in asyncio.run(run())] == [
        [[0]],
        [[1]],
        [[2]],
    ]
