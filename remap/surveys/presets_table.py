"""Surveys whose spectra are tables, or many targets in one file."""

from __future__ import annotations

from remap.surveys.record import Survey

TABLES: tuple[Survey, ...] = ()
