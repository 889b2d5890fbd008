"""Secrets are known by name and by shape, and nothing else is touched."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracedb.redaction import UNREAD, Redactor, is_secret_name, may_hold_secret

_SECRET_NAMES = """
    password Password user_password passwd db_pwd pwd passphrase PGPASSWORD api_key apiKey API_KEY
    x-api-key X-Api-Key openai_api_key OPENAI_API_KEY secret client_secret clientSecret secretKey
    aws_secret_access_key access_key private_key privateKey ssh-key signing_key Authorization
    authorization Proxy-Authorization Cookie Set-Cookie cookies token auth_token accessToken
    access_token refresh_token id_token bot_token csrf-token access_tokens credentials auth
    basic_auth bearer jwt AccountKey SharedAccessKey Ocp-Apim-Subscription-Key password_hash
"""
_PLAIN_NAMES = """
    input_tokens output_tokens max_tokens token_count total_tokens cache_read_tokens tokens
    tokens_used max_completion_tokens cost_per_token time_to_first_token eos_token pad_token
    next_page_token stop_token token_type tokenizer prompt_tokens_details completion_tokens key keys
    event_key idempotency_key primary_key author authors authority authored_by authentication
    secretary password_length password_policy token_expires_in token_url authorization_status
    cookie_name api_key_id session_id keyboard passenger compass monkey
"""


@pytest.mark.parametrize("name", _SECRET_NAMES.split())
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert is_secret_name(name)
    assert may_hold_secret(f'{{"{name}": "x"}}')
    assert may_hold_secret(f"{'some longer text, ' * 20}{name}=x")


@pytest.mark.parametrize("name", _PLAIN_NAMES.split())
def test_other_names_are_left_alone(name: str) -> None:
    assert not is_secret_name(name)
    assert Redactor().text(f'{{"{name}": "x", {name}=12}}') == f'{{"{name}": "x", {name}=12}}'


def test_no_field_of_a_record_is_taken_for_a_secret(conn: psycopg.Connection[Any]) -> None:
    rows = conn.execute(
        "select distinct unnest(t.fields) from tracedb.record_types() as t"
    ).fetchall()

    assert len(rows) > 50
    assert [field for (field,) in rows if is_secret_name(field)] == []


LETTERS = "Ab3dEf6hIj9kLm2nOp5qRs8tUv1wXyZ4"
DIGITS = "A1B2C3D4E5F6G7H8"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIB+marker/0\nxyz\n-----END RSA PRIVATE KEY-----"
# a text, and what becomes of it
SHAPES = {
    f"sk-proj-{LETTERS}": "sk-[redacted]",
    f"sk-ant-api03-{LETTERS}": "sk-[redacted]",
    f"sk_live_{LETTERS}": "sk_live_[redacted]",
    f"ghp_{LETTERS}": "ghp_[redacted]",
    f"github_pat_{LETTERS}": "github_pat_[redacted]",
    f"glpat-{LETTERS}": "glpat-[redacted]",
    f"xoxb-123-{LETTERS}": "xoxb-[redacted]",
    f"hf_{LETTERS}": "hf_[redacted]",
    f"gsk_{LETTERS}": "gsk_[redacted]",
    f"SG.{LETTERS}.{LETTERS}": "SG.[redacted]",
    f"AKIA{DIGITS}": "[redacted]",
    f"ASIA{DIGITS}": "[redacted]",
    f"AIza{LETTERS}": "[redacted]",
    f"eyJhbGciOiJI.eyJzdWIiOiIx.{LETTERS}": "[redacted]",
    f"Bearer {LETTERS}": "Bearer [redacted]",
    PEM: "[redacted]",
    PEM.replace("\n", "\\n"): "[redacted]",
    "postgresql://bot:marker@db.example.org/app": "postgresql://bot:[redacted]@db.example.org/app",
    "redis://:mar/ker@h:6379": "redis://:[redacted]@h:6379",
    "amqp://u:mar@ker@h": "amqp://u:[redacted]@h",
    r"https:\/\/u:marker@h\/": r"https:\/\/u:[redacted]@h\/",
    "password=marker": "password=[redacted]",
    "Password: marker": "Password: [redacted]",
    "PGPASSWORD=marker psql": "PGPASSWORD=[redacted] psql",
    "API key: marker": "API key: [redacted]",
    "?access_token=marker&page=2": "?access_token=[redacted]&page=2",
    "AccountName=a;AccountKey=marker==;B=c": "AccountName=a;AccountKey=[redacted];B=c",
    "login --password marker --verbose": "login --password [redacted] --verbose",
    "login --api-key=marker --verbose": "login --api-key=[redacted] --verbose",
    "Authorization: Basic marker": "Authorization: [redacted]",
    "curl -H 'Authorization: Token marker' http://h": (
        "curl -H 'Authorization: [redacted]' http://h"
    ),
    "Cookie: a=marker; b=marker\r\nHost: h": "Cookie: [redacted]\r\nHost: h",
    "auth: Bearer marker": "auth: [redacted]",
    "client_secret = 'mar\\'ker'": "client_secret = '[redacted]'",
    "password = b'marker' + salt": "password = b'[redacted]' + salt",
    'p["password"] = """marker"""': 'p["password"] = """[redacted]"""',
    "{'credentials': {'user': 'marker'}}": "{'credentials': [redacted]",
    'data: {"token": {"a": ["marker"]}, "b": 1}\n\n': 'data: {"token": [redacted], "b": 1}\n\n',
    'x {\\"api_key\\": \\"mar ker\\", \\"b\\": 1}': (
        'x {\\"api_key\\": \\"[redacted]\\", \\"b\\": 1}'
    ),
    'x {\\\\\\"token\\\\\\": \\\\\\"marker\\\\\\"}': (
        'x {\\\\\\"token\\\\\\": \\\\\\"[redacted]\\\\\\"}'
    ),
    '{"password": "marker': '{"password": "[redacted]',
}


@pytest.mark.parametrize("text", SHAPES)
def test_a_secret_is_known_by_its_shape(text: str) -> None:
    redactor = Redactor()

    assert redactor.text(text) == SHAPES[text]
    assert redactor.count == 1
    assert redactor.text(SHAPES[text]) == SHAPES[text]
    assert redactor.text(f"so\n{text}") == f"so\n{SHAPES[text]}"
    assert redactor.text(f"{'prose, ' * 50}{text}") == f"{'prose, ' * 50}{SHAPES[text]}"


@pytest.mark.parametrize(
    "text",
    [
        "Consider this: a token of thanks to the secretary, who had no password.",
        "input_tokens=10, max_tokens: 100, first token: 20, tokens: [1, 2]",
        "task-0123456789abcdefghij and risk_0123456789abcdefghij",
        "http://example.org:8080/path@v1 and mailto:a@b.org at 12:30",
        "the bearer of good news, Basic understanding of authors: many",
        "def login(user: str, password: str = None, token: bytes = None): ...",
        '{"password": null, "has_token": true}',
        "key: value; keys = [1]; event_key=7",
        "| --- | --- |\n| a | b |",
        "3f2a6e0c-1111-4222-8333-123456789abc 2026-03-04T12:00:00+00:00",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    redactor = Redactor()

    assert redactor.text(text) == text
    assert redactor.count == 0


def test_what_takes_too_much_work_is_not_told() -> None:
    assert Redactor(work=100).text("password=marker " * 100) == UNREAD
    assert Redactor(work=1000).text("password=marker ") == "password=[redacted] "


SECRETS = [text for text in SHAPES if "marker" in text]


@given(st.text(), st.sampled_from(SECRETS), st.text())
def test_a_secret_is_found_in_any_text(before: str, secret: str, after: str) -> None:
    assert "marker" not in Redactor().text(f"{before}\n{secret}\n{after}")


@given(st.text(), st.sampled_from(SECRETS))
def test_a_secret_is_found_in_json_that_was_cut(before: str, secret: str) -> None:
    text = json.dumps({"before": before, "log": f"\n{secret}\n", "after": 1})[:-4]

    assert "marker" not in Redactor().text(text)


@given(st.text(), st.integers(max_value=1000))
def test_any_text_can_be_read(text: str, work: int) -> None:
    once = Redactor(work).text(text)

    assert once == text or may_hold_secret(text)
