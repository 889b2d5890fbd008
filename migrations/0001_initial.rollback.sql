-- 0001_initial.rollback.sql: removes the schema and ALL ITS DATA; the roles and pgvector stay.

set local lock_timeout = '5s';
set local statement_timeout = '10min';

-- The schema itself stays as well, because the ledger of migrations is in it; so it must not go
-- with its owner's objects.
do $$
begin
    execute format('alter schema tracedb owner to %I', current_user);
end $$;
drop owned by tracedb_owner cascade;
revoke all on schema tracedb
from tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
comment on schema tracedb is null;
