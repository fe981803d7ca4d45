"""What OpenAPI promises, asked of the app by schemathesis: whatever is sent, no 5xx, and nobody else's pack."""

import gzip
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from pocketrank.config import Project
from pocketrank_features.serving.app import make_app
from pocketrank_features.serving.tokens import Verifier

from .serving import Issuer, Shop, lines

pytestmark = [
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
]
OURS, OTHERS = 1, (0, 2, 3)


@dataclass(frozen=True)
class Api:
    """An app of four users' packs that also takes events, and a token of one of them."""

    schema: Any
    token: str
    packs: dict[int, bytes]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> Api:
    root: Path = tmp_path_factory.mktemp("openapi") / "shop"
    shop, issuer = Shop(root, rows), Issuer(root / "keys.json")
    shop.fill(lines([0, 1, 2, 3], range(6)), "2024-01-10T00:00:00")
    shop.settings(uploads=True)
    project = Project.open(root)
    app = make_app(project, Verifier(project.sync, root))
    packs = {user: shop.pack(user) for user in (OURS, *OTHERS)}
    return Api(schemathesis.openapi.from_asgi("/openapi.json", app), issuer.token(OURS, exp=2 * 10**9), packs)


def asked(api: Api, held: Callable[[Any], None]) -> None:
    """Hold what comes of some 80 requests of each kind, half of them as OpenAPI wants them and half not."""
    operations = [found.ok() for found in api.schema.get_all_operations()]
    assert len(operations) == 7
    for operation in operations:
        takes_something = operation.body or any(True for _ in operation.iter_parameters())
        for mode in GenerationMode if takes_something else [GenerationMode.POSITIVE]:
            hold_some(operation.as_strategy(generation_mode=mode), held)


def hold_some(cases: Any, held: Callable[[Any], None]) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def of_one(case: Any) -> None:
        held(case)

    of_one()


def test_whoever_has_a_token_gets_what_is_promised_and_no_pack_but_their_own(api: Api) -> None:
    answers, headers = Counter[tuple[str, int]](), {"Authorization": f"Bearer {api.token}"}

    def told(answer: Any, case: Any) -> None:
        holds_nothing_of(OTHERS, answer, api)
        if answer.status_code == 200 and case.path == "/v1/pack":
            assert plain(answer) == api.packs[OURS]
        answers[case.path, answer.status_code] += 1

    def held(case: Any) -> None:
        told(case.call_and_validate(headers=headers), case)
        if case.path == "/v1/pack":  # nobody would guess an encoder that there are packs of
            case.query = {**(case.query or {}), "encoder_id": "e1"}
            told(case.call(headers=headers), case)

    asked(api, held)
    assert {200, 404, 422} <= {status for path, status in answers if path == "/v1/pack"}
    assert {200, 422} <= {status for path, status in answers if path == "/v1/events"}
    assert not [status for _, status in answers if status >= 500]


def test_whoever_has_none_gets_nothing_of_anybody(api: Api) -> None:
    def held(case: Any) -> None:
        answer = case.call()
        assert answer.status_code < 500
        holds_nothing_of((OURS, *OTHERS), answer, api)
        if case.path in ("/v1/pack", "/v1/events"):
            assert answer.status_code in (400, 401, 405, 422)

    asked(api, held)


def plain(answer: Any) -> bytes:
    content: bytes = answer.content
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def holds_nothing_of(users: tuple[int, ...], answer: Any, api: Api) -> None:
    for user in users:
        assert api.packs[user][-200:] not in plain(answer)
