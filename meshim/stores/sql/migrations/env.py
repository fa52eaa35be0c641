"""Run by Alembic: the steps go over the connection that `meshim.stores.sql.upgrades.upgrade` opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
