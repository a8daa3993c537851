"""A photo out of a request's body: the body itself, or the field `file` of a form."""

from email.message import Message
from email.parser import HeaderParser

MOST_PARTS = 100  # of a form


class BadUpload(ValueError):
    """A body that holds no file, told in a sentence."""


def uploaded(content_type: str, body: bytes) -> tuple[str | None, bytes]:
    """Returns the file's own name, None where the request tells none, and its bytes.

    Raises BadUpload.
    """
    try:
        return _uploaded(content_type, body)
    except BadUpload:
        raise
    except (TypeError, ValueError):  # of Python's parser, for odd parameters (RFC 2231)
        raise BadUpload("the headers of the form cannot be read") from None


def _uploaded(content_type: str, body: bytes) -> tuple[str | None, bytes]:
    told = Message()
    told["Content-Type"] = content_type
    if told.get_content_type() != "multipart/form-data":
        return None, body
    boundary = told.get_boundary()
    if not boundary:
        raise BadUpload("the form says no boundary between its fields")
    return _file_in(body, boundary.encode("utf-8", "replace"))


def _file_in(body: bytes, boundary: bytes) -> tuple[str | None, bytes]:
    """The field `file` of a form (RFC 7578)."""
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary, MOST_PARTS)
    found_files: list[tuple[str | None, bytes]] = []
    for part in parts:
        head, found, content = part.partition(b"\r\n\r\n")
        if part.startswith(b"--") or not found:
            continue
        headers = HeaderParser().parsestr(head.decode("utf-8", "replace").lstrip("\r\n"))
        if headers.get_param("name", header="content-disposition") == "file":
            found_files.append((own_name(headers.get_filename()), content))
    if len(found_files) > 1:
        raise BadUpload("the form has several fields `file`: one request answers for one photo")
    if found_files:
        return found_files[0]
    raise BadUpload("the form has no field `file` with a photo: curl -F file=@photo.jpg")


def own_name(name: str | None) -> str | None:
    """Returns a file's name without the folders that some programs send with it."""
    return (name or "").replace("\\", "/").rsplit("/", 1)[-1] or None
