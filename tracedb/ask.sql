-- ask.sql: the statements of tracedb/ask.py. They are DuckDB's, not PostgreSQL's.

-- name: parquet_file
create view {view} as select *, {place} as archive_place from read_parquet({path});

-- name: csv_file
create view {view} as select {columns}, {place} as archive_place
from read_csv(
    {path}, header = false, columns = {texts}, nullstr = '', allow_quoted_nulls = false, quote = '"', escape = '"',
    delim = ',', auto_detect = false, new_line = '\n', max_line_size = 67108864
);

-- name: of_table
create view {view} as select * exclude (archive_place) from ({files})
qualify row_number() over (partition by {keys} order by archive_place) = 1;

-- name: of_file
select * from {view}
