-- 558_templates.sql: texts without what differs from case to case.

set role tracedb_owner;

create or replace function tracedb.error_template(message text)
returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    t text := regexp_replace(left(message, 2000), '\s+', ' ', 'g');
begin
    -- What holds other kinds in it goes first: an address before the numbers in it.
    t := regexp_replace(t, '[a-z][a-z0-9+.-]*://[^\s"''<>)\]]+', '<url>', 'gi');
    t := regexp_replace(t, '[^\s@<>"''(),;:=]+@[^\s@<>"''(),;:=]+\.[a-z]{2,}', '<email>', 'gi');
    t := regexp_replace(
        t, '\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?( ?(Z|[+-]\d\d(:?\d\d)?))?)?',
        '<time>', 'g');
    t := regexp_replace(t, '"[^"]*"|`[^`]*`|(?<![\w>])''[^'']*''(?![\w<])', '<text>', 'g');
    t := regexp_replace(
        t, '(?<![\w<>])(~|\.{1,2}|[A-Za-z]:)?[/\\][\w.@%+-]+([/\\][\w.@%+-]+)*[/\\]?'
        '|(?<![\w/<>.-])[\w.-]+(/[\w.-]+)+\.\w{1,5}(?!\w)', '<path>', 'g');
    -- A word with a digit in it is an id, but for a number with its unit ("30s").
    t := regexp_replace(
        t, '(?<![\w-])(?!-?\d+([.,]\d+)*[A-Za-z]{0,2}(?![\w-]))'
        '(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]+', '<id>', 'g');
    t := regexp_replace(t, '[-+]?\d+([.,:]\d+)*([A-Za-z]{1,2}(?!\w)|%)?', '<n>', 'g');
    t := regexp_replace(t, '<n>([ ,;:/.-]*<n>)+', '<n>', 'g');
    return btrim(left(btrim(t), 500));
end $$;

comment on function tracedb.error_template(text) is
    'A message without what differs from case to case: URLs, e-mail addresses, times, quoted '
    'texts, paths, ids (words with a digit in them) and numbers become <url>, <email>, <time>, '
    '<text>, <path>, <id> and <n>, white space one space. No digit is left. Of the first 2,000 '
    'characters, at most 500.';

create or replace function tracedb.endpoint_template(path text)
returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select left(regexp_replace(
        split_part(split_part(path, '?', 1), '#', 1),
        '(?<=/)(\d+|(?=[^/]*\d)[\w.~%-]{8,})(?=/|$)', '{id}', 'g'), 1024)
$$;

comment on function tracedb.endpoint_template(text) is
    'The path of an endpoint without its query, and with {id} for segments that are a number or '
    'look like an id (8 characters or more with a digit among them).';

create or replace function tracedb.intent_label(intent jsonb)
returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select left(nullif(btrim(case jsonb_typeof(intent)
        when 'string' then intent #>> '{}'
        when 'object' then coalesce(
            intent ->> 'intent', intent ->> 'name', intent ->> 'type', intent ->> 'label',
            intent ->> 'category', intent ->> 'primary')
    end), ''), 200)
$$;

comment on function tracedb.intent_label(jsonb) is
    'The intent of a trace as one label: the text itself, or what its document has as intent, '
    'name, type, label, category or primary. Null if it has none.';

create or replace function tracedb.prompt_keywords(prompt text, labels text[])
returns text[]
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return array(
        select k.word
        from (
            select lower(left(l.label, 200)) as word, l.place
            from unnest(labels) with ordinality as l (label, place)
            where l.label <> ''
            union all
            (
                select lower(p.token), 1000 + min(p.place)
                -- 1 and 2 are words: no numbers, addresses or white space
                from ts_parse('default', left(prompt, 4000))
                    with ordinality as p (kind, token, place)
                where p.kind in (1, 2) and length(p.token) between 3 and 50
                    and ts_lexize('pg_catalog.english_stem', lower(p.token)) <> '{}'
                group by lower(p.token)
                order by 2
                limit 32
            )
        ) as k
        group by k.word
        order by min(k.place)
        limit 48
    );
end $$;

comment on function tracedb.prompt_keywords(text, text[]) is
    'Labels, and after them the first words of a prompt that are not English stop words, in lower '
    'case and each once: at most 32 words, 48 in all.';

reset role;
