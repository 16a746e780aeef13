-- Several processes on one database: order, limits and wake-ups that hold over all of them.

-- The transaction that published. Whoever publishes after an answer of ours has a later one, whichever process answered,
-- so the log is in that order however far the clocks of the machines are apart; within a transaction the ids decide.
ALTER TABLE ringback.event_inbox ADD COLUMN txid xid8 NOT NULL DEFAULT pg_current_xact_id();
ALTER TABLE ringback.event_inbox DROP CONSTRAINT event_inbox_pkey, ADD PRIMARY KEY (tenant_id, txid, event_id);

-- When a lane lost its last owner. The next one counts a receiver's rate from then on, or a limit would be reached twice.
ALTER TABLE ringback.lanes ADD COLUMN freed_at timestamptz;

-- Endpoints that were deleted, for those who forget them in time.
CREATE INDEX endpoints_deleted ON ringback.endpoints (deleted_at) WHERE deleted_at IS NOT NULL;

-- ---------------------------------------------------------------- wake-ups from SQL

-- Commits that notify wait for each other, in the whole server, so of transactions that publish at the same time one
-- notifies: who finds the lock taken leaves it to its holder, and what the holder's commit does not bring in time is
-- found by polling. Nobody waits for this lock. A transaction that has notified cannot be prepared, so where prepared
-- transactions are allowed none notifies; `ringback.notify = off` says the same for a role, a database or a session.
CREATE FUNCTION ringback.wake(loops text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
  IF current_setting('max_prepared_transactions') = '0'
     AND coalesce(nullif(current_setting('ringback.notify', true), ''), 'on') NOT IN ('off', 'false', 'no', '0')
     AND pg_try_advisory_xact_lock(hashtext('ringback.wake'), hashtext(loops)) THEN
    PERFORM pg_notify('ringback', 'sql ' || loops);
  END IF;
END
$$;
COMMENT ON FUNCTION ringback.wake IS 'Wakes the loops of running processes when this transaction commits.';
REVOKE ALL ON FUNCTION ringback.wake(text) FROM PUBLIC;

CREATE OR REPLACE FUNCTION ringback.publish(type text, data json, ordering_key text DEFAULT NULL, dedup_key text DEFAULT NULL,
  metadata jsonb DEFAULT NULL, tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.wake('events'); SELECT ringback.append_event($1, $2::text, $3, $4, $5, $6) $$;

CREATE OR REPLACE FUNCTION ringback.publish(type text, data jsonb, ordering_key text DEFAULT NULL, dedup_key text DEFAULT NULL,
  metadata jsonb DEFAULT NULL, tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.wake('events'); SELECT ringback.append_event($1, $2::text, $3, $4, $5, $6) $$;

CREATE OR REPLACE FUNCTION ringback.publish(type text, data text, ordering_key text DEFAULT NULL, dedup_key text DEFAULT NULL,
  metadata jsonb DEFAULT NULL, tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.wake('events'); SELECT ringback.append_event($1, $2, $3, $4, $5, $6) $$;

-- A job may be ready at once or wait for a time that is earlier than all others: both loops look.
CREATE OR REPLACE FUNCTION ringback.submit(kind text, input json, options jsonb DEFAULT '{}', tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.wake('jobs scheduled'); SELECT ringback.accept_job($1, $2::text, $3, $4) $$;

CREATE OR REPLACE FUNCTION ringback.submit(kind text, input jsonb, options jsonb DEFAULT '{}', tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.wake('jobs scheduled'); SELECT ringback.accept_job($1, $2::text, $3, $4) $$;

CREATE OR REPLACE FUNCTION ringback.submit(kind text, input text, options jsonb DEFAULT '{}', tenant text DEFAULT NULL) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ringback, pg_temp
AS $$ SELECT ringback.wake('jobs scheduled'); SELECT ringback.accept_job($1, $2, $3, $4) $$;
