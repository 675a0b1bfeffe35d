"""One host of a fleet: it works for some seconds, and prints what it has recorded as JSON."""

import asyncio
import json
import random
import sys
import time

from model_catalog import HostRegistry, Model, ModelCatalog, open_catalog
from model_catalog.downloads import use_model

SHARED_NAMES = 12
"""All hosts record models of these names, each at paths of its own."""


class HostWork:
    """Calls of one host, and the models that it should have. A wrong answer raises."""

    def __init__(self, catalog: ModelCatalog, host: str) -> None:
        self.catalog, self.host = catalog, host
        self.fleet, self.registry = catalog.fleet(), HostRegistry(catalog)
        self.sizes: dict[str, int] = {}
        self.uses: dict[str, int] = {}
        self.calls = 0
        self.chance = random.Random(host)

    async def run(self, seconds: float) -> None:
        actions = (
            *(self.register, self.register, self.find, self.update, self.use, self.remove),
            *(self.list, self.who_has, self.totals),
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self.chance.choice(actions)(f"m{self.chance.randrange(SHARED_NAMES)}")
            self.calls += 1

    def path(self, name: str) -> str:
        return f"/{self.host}/{name}"

    async def register(self, name: str) -> None:
        size = self.chance.randrange(10**9)
        model = Model(reference=name, provider="hf", local_path=self.path(name), size_bytes=size)
        self.check(await self.catalog.register_model(model), name)
        self.sizes[name] = size
        self.uses.setdefault(name, 0)

    async def find(self, name: str) -> None:
        found = await self.catalog.find_model(name, "hf")
        assert (found is not None) == (name in self.sizes), (name, found)
        if found is not None:
            self.check(found, name)
            assert found.size_bytes == self.sizes[name], found

    async def update(self, name: str) -> None:
        if name in self.sizes:
            changed = await self.catalog.update_model(name, "hf", description=self.host)
            self.check(changed, name)

    async def use(self, name: str) -> None:
        if name in self.sizes:
            async with use_model(self.catalog, f"hf:{name}") as model:
                self.check(model, name)
            self.uses[name] += 1

    async def remove(self, name: str) -> None:
        removed = await self.catalog.remove_model(name, "hf")
        assert removed == (name in self.sizes), name
        self.sizes.pop(name, None)
        self.uses.pop(name, None)

    async def list(self, _name: str) -> None:
        listed = await self.catalog.list_models()
        for model in listed:
            self.check(model, model.reference)
        assert {model.reference: model.size_bytes for model in listed} == self.sizes
        assert await self.catalog.get_total_size() == sum(self.sizes.values())

    async def who_has(self, name: str) -> None:
        copies = await self.fleet.who_has(f"hf:{name}")
        own = [copy.size_bytes for copy in copies if copy.host == self.host]
        assert own == [size for each, size in self.sizes.items() if each == name], copies
        assert all(copy.local_path == f"/{copy.host}/{name}" for copy in copies), copies

    async def totals(self, _name: str) -> None:
        totals = {each.host: each for each in await self.fleet.totals_by_host()}
        own = totals[self.host]
        assert (own.model_count, own.size_bytes) == (len(self.sizes), sum(self.sizes.values()))
        await self.registry.heartbeat(self.host, free_bytes=self.calls)

    def check(self, model: Model, name: str) -> None:
        """Assert that a model is the host's own."""
        found = (model.host, model.reference, model.local_path)
        assert found == (self.host, name, self.path(name)), model


async def main(target: str, host: str, seconds: float) -> None:
    async with open_catalog(target, host=host) as catalog:
        work = HostWork(catalog, host)
        await work.registry.register_host(host, capacity_bytes=10**12, free_bytes=10**11)
        async with work.registry.beat(host, interval_s=5):
            await work.run(seconds)
    found = {"host": host, "calls": work.calls, "sizes": work.sizes, "uses": work.uses}
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
