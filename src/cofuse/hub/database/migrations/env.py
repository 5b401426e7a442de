"""What alembic runs: the steps, on the connection that it was given."""

from alembic import context

from cofuse.hub.database.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    # SQLite cannot change a table in place: alembic makes a new one and copies.
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
