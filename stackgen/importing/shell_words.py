"""Reads single words of a shell: quotes, backslashes, `$(…)`, `${…}`, and continued lines."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Piece", "WordReader"]


@dataclass(slots=True)
class Piece:
    """A part of a word between quotes: `split` pieces are divided at spaces after variables are replaced."""

    text: str
    expands: bool
    split: bool


class WordReader:
    """A text with a position `at` and the number of its `line`."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at, self.line = 0, 1

    def read_word(self) -> tuple[list[Piece], str]:
        """Reads one word. Returns its pieces, and its text without quotes but with variables."""
        pieces: list[Piece] = []
        text, at = self.text, self.at
        bare = ""
        while at < len(text) and text[at] not in " \t\n;&|()":
            char = text[at]
            if char in "<>" and not (bare.endswith("$") or text[at : at + 2] == "<(") and not bare:
                break
            if char == "\\":
                if text[at : at + 2] == "\\\n":
                    at, self.line = at + 2, self.line + 1
                    continue
                pieces += [Piece(bare, True, True), Piece(text[at + 1 : at + 2], False, False)]
                bare, at = "", at + 2
            elif char in "'\"" or (char == "$" and text[at : at + 2] == "$'"):
                quote = char if char != "$" else "'"
                start = at + (2 if char == "$" else 1)
                body, at = self._quoted(start, quote)
                pieces += [Piece(bare, True, True), Piece(body, quote == '"', False)]
                bare = ""
            elif text[at : at + 2] in ("$(", "${") or char == "`":
                end = self._closing(at)
                substitution = text[at:end]
                # the braces of a variable may contain spaces: `${A:-a b}`
                pieces += [Piece(bare, True, True), Piece(substitution, substitution.startswith("${"), True)]
                self.line += substitution.count("\n")
                bare, at = "", end
            else:
                bare, at = bare + char, at + 1
        pieces.append(Piece(bare, True, True))
        self.at = at
        return pieces, "".join(piece.text for piece in pieces)

    def _quoted(self, start: int, quote: str) -> tuple[str, int]:
        out, at = "", start
        while at < len(self.text) and self.text[at] != quote:
            if quote == '"' and self.text[at] == "\\" and self.text[at + 1 : at + 2] in ('"', "\\", "`", "\n"):
                # a continued line inside double quotes disappears
                out += "" if self.text[at + 1] == "\n" else self.text[at + 1]
                self.line += self.text[at + 1] == "\n"
                at += 2
                continue
            if quote == '"' and self.text[at : at + 2] in ("$(", "${"):
                end = self._closing(at)
                out, at = out + self.text[at:end], end
                continue
            self.line += self.text[at] == "\n"
            out, at = out + self.text[at], at + 1
        return out, at + 1

    def _closing(self, start: int) -> int:
        """The end of the `$(…)`, `${…}` or backquotes that start at `start`."""
        if self.text[start] == "`":
            end = self.text.find("`", start + 1)
            return end + 1 if end >= 0 else len(self.text)
        opening, closing = self.text[start + 1], ")" if self.text[start + 1] == "(" else "}"
        depth, at = 0, start + 1
        while at < len(self.text):
            depth += (self.text[at] == opening) - (self.text[at] == closing)
            at += 1
            if depth == 0:
                break
        return at
