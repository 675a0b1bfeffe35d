"""Random interleavings of claims: no two holders at once, and only the holder can register."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import create_engine, true

from model_catalog import ClaimLostError, Model
from model_catalog.downloads.queries.claim_queries import (
    ClaimedName,
    ClaimRequest,
    EndedDownload,
    Purpose,
    end_claim,
    end_download,
    insert_claim,
    lock_versions,
    renew_claims,
    save_progress,
    take_claim,
)
from model_catalog.downloads.states import Holder
from model_catalog.repository.operations.lookup import LookupKey, remove_models
from model_catalog.repository.operations.registration import UpsertRow, register_one

VERSIONS = st.sampled_from([None, "v1", "v2"])
LEASE_MS = 3_600_000


def key_of(version):
    return LookupKey("org/tiny", "hf", version)


class Claims(RuleBasedStateMachine):
    """Holders take, renew, lose and end claims; `held` is what must be in the database."""

    engine = None
    tokens = Bundle("tokens")

    def __init__(self):
        super().__init__()
        self.held = {}
        self.expired = set()
        self.models = set()
        self.count = 0
        with self.engine.begin() as connection:
            for table in ("model_downloads", "model_claims", "models"):
                connection.exec_driver_sql(f"DELETE FROM {table}")

    def new_holder(self):
        self.count += 1
        return Holder(f"t{self.count}", "host", self.count)

    def delete_expired(self, is_in_the_way):
        for version, (token, purpose) in list(self.held.items()):
            if token in self.expired and is_in_the_way(version, purpose):
                del self.held[version]

    def take(self, function, version, purpose, is_in_the_way):
        """Take a claim, and compare the outcome with the one that the rules say."""
        holder = self.new_holder()
        request = ClaimRequest(ClaimedName(key_of(version)), purpose, holder, LEASE_MS)
        with self.engine.begin() as connection:
            other = function(connection, request)
        self.delete_expired(is_in_the_way)
        expected = {token for name, (token, kind) in self.held.items() if is_in_the_way(name, kind)}
        if other is not None:
            assert other.token in expected
            return multiple()
        assert not expected
        self.held[version or ""] = (holder.token, purpose)
        return holder.token

    @rule(target=tokens, version=VERSIONS)
    def claim_download(self, version):
        is_recorded = bool(self.models) if version is None else version in self.models

        def function(connection, request):
            outcome = take_claim(connection, request)
            assert (outcome.model is not None) == is_recorded
            if outcome.model is not None:
                return Holder("recorded")
            assert outcome.is_taken == (outcome.other is None)
            return outcome.other

        if is_recorded:
            with self.engine.begin() as connection:
                function(
                    connection,
                    ClaimRequest(
                        ClaimedName(key_of(version)), Purpose.DOWNLOAD, self.new_holder(), LEASE_MS
                    ),
                )
            return multiple()
        return self.take(
            function,
            version,
            Purpose.DOWNLOAD,
            lambda name, kind: name == (version or "") or kind is Purpose.EVICT,
        )

    @rule(target=tokens, version=VERSIONS)
    def claim_eviction(self, version):
        def function(connection, request):
            lock_versions(connection, request.name.key)
            return insert_claim(connection, request, true())

        return self.take(function, version, Purpose.EVICT, lambda *_: True)

    @rule(token=tokens)
    def expire(self, token):
        with self.engine.begin() as connection:
            connection.exec_driver_sql(
                f"UPDATE model_claims SET expires_at_ms = 1 WHERE token = '{token}'"
            )
        self.expired.add(token)

    @rule(token=tokens)
    def set_the_clock_back(self, token):
        """The claim then begins in the future, and has expired."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE model_claims SET renewed_at_ms = renewed_at_ms + 10000000000,"
                f" expires_at_ms = expires_at_ms + 10000000000 WHERE token = '{token}'"
            )
        self.expired.add(token)

    @rule(tokens=st.lists(tokens, max_size=3))
    def renew(self, tokens):
        with self.engine.begin() as connection:
            held = renew_claims(connection, dict.fromkeys(tokens, LEASE_MS))
            save_progress(connection, [(each, 1, 2) for each in tokens])
        assert held == set(tokens) & {token for token, _ in self.held.values()}
        self.expired -= held

    @rule(token=tokens, succeeds=st.booleans())
    def end(self, token, succeeds):
        """Only a holder registers, in the transaction that ends its claim."""
        versions = {mine: (version, kind) for version, (mine, kind) in self.held.items()}
        version, kind = versions.get(token, (None, None))
        try:
            with self.engine.begin() as connection:
                if kind is Purpose.EVICT:
                    end_claim(connection, token)
                else:
                    error = None if succeeds else "failed"
                    end_download(connection, EndedDownload(token, error, 1, 1))
                    if succeeds:
                        model = Model(
                            reference="org/tiny",
                            provider="hf",
                            version=version or "",
                            local_path=f"/{token}",
                        )
                        register_one(connection, UpsertRow.from_model(model))
        except ClaimLostError:
            assert token not in versions
            return
        assert token in versions
        del self.held[version]
        if succeeds and kind is Purpose.DOWNLOAD:
            self.models.add(version)

    @rule()
    def remove_the_models(self):
        with self.engine.begin() as connection:
            remove_models(connection, key_of(None))
        self.models.clear()

    @invariant()
    def the_database_has_these_claims_and_models(self):
        with self.engine.begin() as connection:
            claims = connection.exec_driver_sql(
                "SELECT version, token, purpose FROM model_claims"
            ).all()
            active = connection.exec_driver_sql(
                "SELECT version, count(*) FROM model_downloads"
                " WHERE state IN ('queued', 'running') GROUP BY version"
            ).all()
            models = connection.exec_driver_sql("SELECT version FROM models").all()
        assert {version: (token, kind) for version, token, kind in claims} == self.held
        assert all(count == 1 for _, count in active)
        assert {version for (version,) in models} == self.models


@pytest.mark.parametrize("backend", ["sqlite", "psycopg"])
@pytest.mark.parametrize("examples", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_no_two_holders_have_a_claim_at_once(database, examples):
    """
    Claims are taken, renewed, expired, taken over, released and used to register, in any order.
    """
    if database.path is not None:
        url = f"sqlite:///{database.path}"
    else:
        url = database.target_url.set(drivername="postgresql+psycopg")
    engine = create_engine(url)
    machine = type("Machine", (Claims,), {"engine": engine})

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    engine.dispose()
