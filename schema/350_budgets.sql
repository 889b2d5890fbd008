-- 350_budgets.sql: what a tenant may spend, what is set aside of it, and when it was crossed.

set role tracedb_owner;

create table if not exists tracedb.budgets (
    tenant_id      uuid        not null,
    budget_id      uuid        not null default tracedb.new_id(),
    name           text        not null,
    period         text        not null,
    -- Null: no such limit.
    soft_limit_usd numeric,
    hard_limit_usd numeric,
    created_at     timestamptz not null default now(),
    updated_at     timestamptz not null default now(),
    constraint budgets_pkey primary key (tenant_id, budget_id),
    constraint budgets_name unique (tenant_id, name),
    constraint budget_has_a_name check (name <> ''),
    constraint budget_period_known check (period in ('day', 'week', 'month')),
    constraint budget_limits_are_money check (
        soft_limit_usd >= 0 and soft_limit_usd < 1e15
        and hard_limit_usd >= 0 and hard_limit_usd < 1e15
    ),
    constraint budget_soft_before_hard check (soft_limit_usd <= hard_limit_usd),
    constraint budget_has_a_limit check (num_nonnulls(soft_limit_usd, hard_limit_usd) > 0)
);

comment on table tracedb.budgets is
    'What a tenant may spend in a day, week or month (in UTC), in US dollars. Crossing the soft '
    'limit is recorded (budget_alerts); reserve_budget gives nothing beyond the hard one.';
comment on constraint budget_has_a_name on tracedb.budgets is
    'name: required';
comment on constraint budget_period_known on tracedb.budgets is
    'period: must be day, week or month';
comment on constraint budget_limits_are_money on tracedb.budgets is
    'soft_limit_usd, hard_limit_usd: must be at least 0 and less than 1e15, and a number';
comment on constraint budget_soft_before_hard on tracedb.budgets is
    'soft_limit_usd: must not exceed hard_limit_usd';
comment on constraint budget_has_a_limit on tracedb.budgets is
    'soft_limit_usd, hard_limit_usd: at least one';

create table if not exists tracedb.budget_reservations (
    tenant_id      uuid        not null,
    reservation_id uuid        not null default tracedb.new_id(),
    status         text        not null default 'open',
    reserved_at    timestamptz not null default now(),
    expires_at     timestamptz not null,
    amount_usd     numeric     not null,
    -- Null: not settled.
    settled_usd    numeric,
    -- Null: what is paid for is no trace, or not yet known to be one.
    trace_id       uuid,
    updated_at     timestamptz not null default now(),
    constraint budget_reservations_pkey primary key (tenant_id, reservation_id),
    constraint reservation_status_known check (status in ('open', 'settled', 'released')),
    constraint reservation_is_money check (
        amount_usd >= 0 and amount_usd < 1e15 and settled_usd >= 0 and settled_usd < 1e15
    ),
    constraint reservation_is_settled_with_a_cost
        check ((status = 'settled') = (settled_usd is not null)),
    constraint reservation_ends_after_start check (expires_at >= reserved_at)
);

comment on table tracedb.budget_reservations is
    'Money set aside for a call that is about to be made: open until it is settled with what the '
    'call cost, released, or expired.';
comment on column tracedb.budget_reservations.trace_id is
    'The trace whose cost this is: once that is known, it counts instead.';
comment on constraint reservation_status_known on tracedb.budget_reservations is
    'status: must be open, settled or released';
comment on constraint reservation_is_money on tracedb.budget_reservations is
    'amount_usd, settled_usd: must be at least 0 and less than 1e15, and a number';
comment on constraint reservation_is_settled_with_a_cost on tracedb.budget_reservations is
    'settled_usd: of a settled reservation, and of no other';
comment on constraint reservation_ends_after_start on tracedb.budget_reservations is
    'expires_at: must not be before reserved_at';

create table if not exists tracedb.budget_alerts (
    tenant_id    uuid        not null,
    budget_id    uuid        not null,
    period_start timestamptz not null,
    threshold    text        not null,
    limit_usd    numeric     not null,
    spent_usd    numeric     not null,
    created_at   timestamptz not null default now(),
    constraint budget_alerts_pkey primary key (tenant_id, budget_id, period_start, threshold),
    constraint budget_alerts_budget foreign key (tenant_id, budget_id)
        references tracedb.budgets on delete cascade,
    constraint alert_threshold_known check (threshold in ('soft', 'hard'))
);

comment on table tracedb.budget_alerts is
    'That a limit of a budget was reached, once a period and limit; written by check_budgets.';
comment on column tracedb.budget_alerts.spent_usd is
    'What was spent when it was noticed.';
comment on constraint alert_threshold_known on tracedb.budget_alerts is
    'threshold: must be soft or hard';

reset role;
