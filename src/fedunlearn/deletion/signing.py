"""Keys and signatures: what a node asks and what a server certifies can be checked by anyone who has the public key.

A server signs with Ed25519. A node signs with the key that its SuperNode authenticates itself with, which Flower wants
on the curve P-384. Every signature is of one purpose, so that what was signed as one thing cannot be shown as another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric.ec import (
        ECDSA,
        SECP384R1,
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
        generate_private_key,
    )
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
except ModuleNotFoundError:
    raise ImportError("keys need the package cryptography: pip install 'fedunlearn[flower]'") from None

from fedunlearn.atomic import atomic_write

__all__ = ["KeyProblem", "PublicKey", "Purpose", "SigningKey", "canonical", "public_half", "sha256"]

Purpose = Literal["hello", "request", "head", "receipt", "rotation"]

_LONGEST_KEY_FILE = 16_384  # bytes; a P-384 key takes 300
_PRIVATE = "PRIVATE KEY"  # in the first line of a private key, in PEM and in OpenSSH's form


class KeyProblem(ValueError):
    """A key's file is not there, open to others, or no key; the sentence says what to do."""


def canonical(content: Any) -> bytes:
    """JSON of plain values in the one form that is hashed and signed: sorted names, no spaces, UTF-8.

    Raises:
        ValueError: it holds what JSON has no form for, NaN and infinity among it.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def sha256(content: Any) -> str:
    """Hexadecimal digest of the canonical form."""
    return hashlib.sha256(canonical(content)).hexdigest()


@dataclass(frozen=True)
class PublicKey:
    """Who signs, as everybody may know it.

    Attributes:
        text: the key as one line in OpenSSH's form, without a comment: ``ssh-ed25519 AAAA...``.
    """

    text: str

    @classmethod
    def of(cls, text: str) -> PublicKey:
        """Read a key in OpenSSH's form, or in PEM.

        Raises:
            KeyProblem: it is no Ed25519 key and none of an elliptic curve.
        """
        try:
            raw = text.strip().encode()
            if len(raw) > _LONGEST_KEY_FILE:
                raise ValueError
            pem = raw.startswith(b"-----BEGIN")
            key = serialization.load_pem_public_key(raw) if pem else serialization.load_ssh_public_key(raw)
        except Exception:  # whatever these raise at keys that somebody has made up, NotImplementedError among it
            key = None
        if not isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey):
            raise KeyProblem(
                "this is no public key: give a line such as 'ssh-ed25519 AAAA...' or 'ecdsa-sha2-nistp384 AAAA...', "
                "as stands in the .pub file"
            )
        return cls(_line(key))

    @classmethod
    def load(cls, path: Path) -> PublicKey:
        """Read a ``.pub`` file.

        Raises:
            KeyProblem: there is none, or it holds no public key.
        """
        text = _contents(path).decode(errors="replace")
        if _PRIVATE in text:
            raise KeyProblem(f"{path} holds a private key: give the public one, {path}.pub")
        try:
            return cls.of(text)
        except KeyProblem as error:
            raise KeyProblem(f"{path}: {error}") from None

    @property
    def of_node(self) -> bool:
        """Whether a SuperNode can have it, which needs an elliptic curve; a server's is Ed25519."""
        return not self.text.startswith("ssh-ed25519 ")

    @property
    def fingerprint(self) -> str:
        """Short enough to read to one another: ``SHA256:...``, as ``ssh-keygen -l`` prints it."""
        raw = base64.b64decode(self.text.split()[1])
        return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")

    def verified(self, purpose: Purpose, content: Any, signature: object) -> bool:
        """Whether this key has signed ``content`` for ``purpose``; False for whatever is no signature at all."""
        try:
            raw = base64.b64decode(str(signature), validate=True)
            if base64.b64encode(raw).decode() != signature:  # base64 has several texts for some bytes: one is ours
                return False
            message = _message(purpose, content)
            key = serialization.load_ssh_public_key(self.text.encode())
            if isinstance(key, Ed25519PublicKey):
                key.verify(raw, message)
            elif isinstance(key, EllipticCurvePublicKey):
                key.verify(raw, message, ECDSA(hashes.SHA384()))
            else:
                return False
        except (InvalidSignature, UnsupportedAlgorithm, binascii.Error, ValueError, RecursionError):
            return False
        return True


class SigningKey:
    """A private key: a server's (Ed25519) or a SuperNode's (P-384)."""

    def __init__(self, key: Ed25519PrivateKey | EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def make(cls, path: Path, *, node: bool = False) -> SigningKey:
        """Make a key and write it to ``path``, for the owner's eyes only, and its public half to ``path.pub``.

        Args:
            path: of the file; it must not exist.
            node: whether it is a SuperNode's, for which Flower wants the curve P-384; else a server's.

        Raises:
            KeyProblem: there is a file already, or the folder is not there or cannot be written.
            OSError: the disk is full.
        """
        key = generate_private_key(SECP384R1()) if node else Ed25519PrivateKey.generate()
        made = cls(key)
        form = serialization.PrivateFormat.OpenSSH  # the one form that a SuperNode reads
        private = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise KeyProblem(f"{path} is there already: a key is never overwritten, choose another name") from None
        except FileNotFoundError:
            raise KeyProblem(f"there is no folder {path.parent} to keep a key in: make it first") from None
        except OSError as error:
            raise KeyProblem(f"the key {path} cannot be written: {error.strerror or error}") from None
        with open(descriptor, "wb") as file:
            file.write(private)
            file.flush()
            os.fsync(file.fileno())
        with atomic_write(path.with_name(path.name + ".pub")) as public:
            public.write(f"{made.public.text}\n".encode())
        return made

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a private key without a password, in PEM or in OpenSSH's form.

        Raises:
            KeyProblem: there is none, others can read it, or it is no such key.
        """
        raw = _contents(path)
        try:
            openssh = b"BEGIN OPENSSH" in raw
            load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
            key = load(raw, None)
        except Exception:  # as with public keys, whatever these raise
            key = None
        if not isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey):
            raise KeyProblem(f"{path} holds no private key without a password: make one with `fedunlearn keys new`")
        if os.name == "posix" and path.stat().st_mode & 0o077:  # only now: nobody is to chmod what is no key
            raise KeyProblem(f"others can read the private key {path}: chmod 600 {path}")
        return cls(key)

    @property
    def public(self) -> PublicKey:
        """The other half."""
        return PublicKey(_line(self._key.public_key()))

    def sign(self, purpose: Purpose, content: Any) -> str:
        """Sign plain values for a purpose; base64."""
        message = _message(purpose, content)
        if isinstance(self._key, Ed25519PrivateKey):
            raw = self._key.sign(message)
        else:
            raw = self._key.sign(message, ECDSA(hashes.SHA384()))
        return base64.b64encode(raw).decode()


def public_half(path: Path) -> PublicKey:
    """The public key of a file, whichever half of the key it holds.

    Raises:
        KeyProblem: it holds neither, or a private one that others can read.
    """
    private = _PRIVATE in _contents(path).decode(errors="replace")
    return SigningKey.load(path).public if private else PublicKey.load(path)


def _message(purpose: Purpose, content: Any) -> bytes:
    return b"fedunlearn " + purpose.encode() + b"\n" + canonical(content)


def _line(key: Ed25519PublicKey | EllipticCurvePublicKey) -> str:
    raw = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return " ".join(raw.decode().split()[:2])


def _contents(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LONGEST_KEY_FILE)
    except FileNotFoundError:
        raise KeyProblem(f"there is no key {path}: make one with `fedunlearn keys new`") from None
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise KeyProblem(f"{path} cannot be read as a key: {getattr(error, 'strerror', None) or error}") from None
