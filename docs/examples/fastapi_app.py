"""Books in a database and a cache before it, for any number of processes: `uvicorn fastapi_app:app --workers 4`."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

import memo
from memo import InvalidationError, cache_aside, invalidates


class Book(BaseModel):
    title: str
    price: int


def query(sql: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(os.environ["BOOKS_DB"])) as database, database:
        return database.execute(sql, values).fetchall()


@cache_aside(ttl=300, key="book:{book_id}")
async def get_book(book_id: int) -> Book | None:
    rows = await asyncio.to_thread(query, "SELECT title, price FROM book WHERE id = ?", book_id)
    return Book(title=rows[0][0], price=rows[0][1]) if rows else None


@invalidates(get_book)
async def save_book(book_id: int, book: Book) -> None:
    await asyncio.to_thread(query, "REPLACE INTO book VALUES (?, ?, ?)", book_id, book.title, book.price)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    memo.configure(os.environ.get("BOOKS_CACHE", "memory://"))
    query("CREATE TABLE IF NOT EXISTS book (id INTEGER PRIMARY KEY, title TEXT, price INTEGER)")
    yield
    await memo.aclose()


app = FastAPI(lifespan=lifespan)


@app.get("/books/{book_id}")
async def read(book_id: int) -> Book:
    book = await get_book(book_id)
    if book is None:
        raise HTTPException(404)
    return book


@app.put("/books/{book_id}")
async def write(book_id: int, book: Book) -> dict[str, bool]:
    try:
        await save_book(book_id, book)
    except InvalidationError:  # it is saved, but readers may get the old book until its ttl is over
        return {"saved": True, "seen": False}
    return {"saved": True, "seen": True}


@app.get("/health")
async def health() -> dict[str, Any]:
    return {"status": "ok", "cache": memo.report().to_dict()}
