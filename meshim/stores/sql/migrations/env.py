"""Alembic runs this file; the steps use the connection that `meshim.stores.sql.migrate.upgrade` has opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
