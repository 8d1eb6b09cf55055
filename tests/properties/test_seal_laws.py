"""Laws of the seal: what was sealed comes back, what was changed does not, and the bytes are those of RFC 8785."""

import base64
import json
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from esci.messages import Message, RecordItem, Records
from esci.records import batch_text, item_text, raw_digest, stored_digest
from esci.seal import KeySigner, SealError, canonical, load, seal, seal_canonical, unseal

SIGNER_KEY = ec.generate_private_key(ec.SECP256R1())
SIGNER = KeySigner(SIGNER_KEY)
names = st.text(st.characters(max_codepoint=127), max_size=8)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12)
bodies = st.dictionaries(names, values, max_size=6)


def public_for(kid: str) -> ec.EllipticCurvePublicKey | None:
    return SIGNER_KEY.public_key() if kid == SIGNER.kid else None


def by_hand(value: object) -> str:
    """RFC 8785 sections 3.2.2 and 3.2.3, for what bodies may hold; shares nothing with the module."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            short = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
            return '"' + "".join(short.get(ord(c), f"\\u{ord(c):04x}" if ord(c) < 32 else c) for c in value) + '"'
        case list():
            return "[" + ",".join(by_hand(item) for item in value) + "]"
        case dict():
            ordered = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be"))
            return "{" + ",".join(f"{by_hand(name)}:{by_hand(item)}" for name, item in ordered) + "}"
    raise AssertionError(value)


@pytest.mark.req("P1-S1.10")
@given(bodies)
def test_what_was_sealed_comes_back(body: dict[str, object]) -> None:
    assert unseal(seal(body, SIGNER), public_for) == body


@pytest.mark.req("P1-S1.10")
@given(bodies)
def test_the_canonical_form_is_that_of_rfc_8785(body: dict[str, object]) -> None:
    assert canonical(body) == by_hand(body).encode()
    assert canonical(load(canonical(body))) == canonical(body)


@pytest.mark.req("P1-S1.10")
@given(bodies, st.data())
def test_the_order_of_members_does_not_matter(body: dict[str, object], data: st.DataObject) -> None:
    assert canonical(dict(data.draw(st.permutations(list(body.items()))))) == canonical(body)


@pytest.mark.req("P1-S1.10", "P1-S1.11")
@given(bodies, st.data())
def test_no_flipped_bit_gives_another_body(body: dict[str, object], data: st.DataObject) -> None:
    """Refused; or the very same body: base64's spare bits and hex digits of an escape may be written in two ways."""
    payload = bytearray(seal(body, SIGNER))
    bit = data.draw(st.integers(0, len(payload) * 8 - 1))
    payload[bit // 8] ^= 1 << bit % 8
    with suppress(SealError):
        assert unseal(bytes(payload), public_for) == body


@pytest.mark.req("P1-S1.10", "P1-S1.11")
def test_every_flipped_bit_of_a_whole_message_is_refused_but_for_the_spare_bits_of_base64() -> None:
    body: dict[str, object] = {"device": "evse-1", "kind": "ack", "epoch": 7, "seq": 12, "flags": ["a", None, True]}
    payload = seal(body, SIGNER)
    spare = len(payload) - len(b'"}}') - 1  # the signature's last letter: 86 letters hold 516 bits, 512 are used
    accepted = set()
    for bit in range(len(payload) * 8):
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        with suppress(SealError):
            assert unseal(bytes(changed), public_for) == body
            accepted.add(bit // 8)
    assert accepted <= {spare}


@pytest.mark.req("P1-S1.10")
@given(bodies, st.binary(min_size=64, max_size=64))
def test_a_strange_signature_or_key_is_refused(body: dict[str, object], sig: bytes) -> None:
    text = base64.urlsafe_b64encode(sig).rstrip(b"=").decode()
    forged = {"body": body, "seal": {"alg": "ES256", "kid": SIGNER.kid, "sig": text}}
    with pytest.raises(SealError):
        unseal(json.dumps(forged).encode(), public_for)
    with pytest.raises(SealError, match="unknown key"):
        unseal(seal(body, KeySigner(ec.generate_private_key(ec.SECP256R1()))), public_for)


@pytest.mark.req("P1-S1.10")
@pytest.mark.parametrize("payload", [
    b"", b"[]", b"1", b"null", b"{", b'{"a":1.0}', b'{"a":1e3}', b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":1,"a":1}',
    b'{"a":{"b":1,"b":2}}', b"\xff", b'{"a":"\xff"}', b"[" * 100_000, b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    b'{"a":' + b"9" * 5_000 + b"}", b'{"a":"' + b"x" * 262_144 + b'"}'])
def test_what_is_not_an_object_of_integers_and_text_is_refused(payload: bytes) -> None:
    with pytest.raises(SealError):
        load(payload)


@pytest.mark.req("P1-S1.10")
@pytest.mark.parametrize("body", [
    {"a": 1.5}, {"a": float("nan")}, {"a": 2**53}, {"a": -(2**53)}, {"a": b"x"}, {"ä": 1}, {"\ud800": 1},
    {"a": "\ud800"}, {"a": {1: 2}}, {"a": {1, 2}}])
def test_what_has_no_one_canonical_form_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(SealError):
        canonical(body)


@pytest.mark.req("P1-S1.10")
def test_a_surrogate_a_deep_body_and_a_big_integer_on_the_wire_are_refused() -> None:
    deep: dict[str, object] = {}
    for _ in range(20):
        deep = {"a": deep}
    for body in (b'{"a":"\\ud800"}', json.dumps(deep).encode(), b'{"a":9007199254740992}'):
        payload = b'{"body":' + body + seal({"a": 1}, SIGNER)[len(b'{"body":{"a":1}'):]
        with pytest.raises(SealError):
            unseal(payload, public_for)


@pytest.mark.req("P1-S1.10")
@given(st.binary(max_size=200))
def test_garbage_raises_nothing_but_a_seal_error(payload: bytes) -> None:
    with pytest.raises(SealError):
        unseal(payload, public_for)


@given(bodies)
def test_the_digest_of_a_stored_body_is_the_digest_of_the_record(body: dict[str, object]) -> None:
    """The journal proves its rows without parsing them, and comes to what the utility computes."""
    place = ("0" * 64, 7, 3, "event", "2025-07-16T03:20:00Z", "synced")
    text = canonical(body).decode()
    whole = raw_digest("0" * 64, 7, 3, "event", "2025-07-16T03:20:00Z", "synced", body)
    assert stored_digest(*place, text) == whole


@given(st.lists(bodies, min_size=1, max_size=4), st.integers(1, 2**53 - 1), st.integers(0, 2**48))
def test_a_batch_spliced_from_stored_texts_is_the_canonical_message(
    found: list[dict[str, object]], first_seq: int, epoch: int
) -> None:
    """What the journal wrote is sent as it is; it must be, byte for byte, what the message's model would give."""
    at = "2025-07-16T03:20:00Z"
    items = [RecordItem(kind="event", at=at, clock="synced", body=body) for body in found]
    head = Message(device="evse-1", id="a" * 32, at=at)
    whole = Records(device=head.device, id=head.id, at=at, epoch=epoch, first_seq=first_seq, prev="0" * 64,
                    records=items)
    texts = [item_text("event", at, "synced", canonical(body).decode()) for body in found]
    spliced = batch_text(head, epoch, first_seq, "0" * 64, texts)
    assert spliced == canonical(whole.model_dump(mode="json"))
    assert seal_canonical(spliced, SIGNER).startswith(b'{"body":' + spliced)
