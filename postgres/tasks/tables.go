package tasks

import "github.com/caddy-usher/usher/postgres/server"

// clock is the time of the store, in µs since 1970.
const clock = `(extract(epoch FROM clock_timestamp()) * 1000000)::bigint`

// tables are those of the store. Times are in µs since 1970, and 0 if there is none.
// The column phase is that of a pending task, or 0.
//
// counts has changes, which are added up: a row that each transaction changes would
// let all wait for each other. The kinds are the states, and readyKind.
var tables = server.Tables{Name: "tasks", Steps: []string{
	`
	CREATE TABLE meta (name text PRIMARY KEY, value bytea NOT NULL);

	CREATE SEQUENCE numbers;

	CREATE TABLE tasks (
		number      bigint PRIMARY KEY,
		id          text COLLATE "C" NOT NULL UNIQUE,
		place       bigint NOT NULL,
		queue       text COLLATE "C" NOT NULL,
		exclusive   text COLLATE "C" NOT NULL,
		group_key   bigint,
		key_hash    bytea UNIQUE,
		print       bytea,
		state       smallint NOT NULL,
		phase       smallint NOT NULL,
		attempt     integer NOT NULL DEFAULT 0,
		counted     integer NOT NULL DEFAULT 0,
		owner       text COLLATE "C" NOT NULL DEFAULT '',
		claim       text COLLATE "C" NOT NULL DEFAULT '',
		cancelling  boolean NOT NULL DEFAULT false,
		progress    smallint NOT NULL DEFAULT -1,
		keep        bigint NOT NULL,
		body_size   bigint NOT NULL,
		status      integer NOT NULL DEFAULT 0,
		result_size bigint NOT NULL DEFAULT 0,
		accepted    bigint NOT NULL,
		due         bigint NOT NULL,
		started     bigint NOT NULL DEFAULT 0,
		expires     bigint NOT NULL,
		ended       bigint NOT NULL DEFAULT 0,
		kept_until  bigint NOT NULL DEFAULT 0,
		data        bytea NOT NULL,
		reason      bytea,
		header      bytea
	);
	CREATE INDEX tasks_ready ON tasks (queue, exclusive, place) WHERE phase = 1;
	CREATE INDEX tasks_delayed ON tasks (queue, due) WHERE phase = 2;
	CREATE INDEX tasks_groups ON tasks (queue, group_key, place) WHERE state <= 2 AND group_key IS NOT NULL;
	CREATE INDEX tasks_listed ON tasks (queue, state, number);
	CREATE INDEX tasks_running ON tasks (owner) WHERE state = 2;
	CREATE INDEX tasks_expiry ON tasks (expires) WHERE expires > 0;
	CREATE INDEX tasks_ends ON tasks (kept_until) WHERE kept_until > 0;

	CREATE TABLE parts (
		number bigint,
		kind   text COLLATE "C",
		chunk  integer,
		data   bytea NOT NULL,
		PRIMARY KEY (number, kind, chunk)
	);
	ALTER TABLE parts ALTER COLUMN data SET STORAGE EXTERNAL;

	CREATE TABLE exclusives (name text COLLATE "C" PRIMARY KEY, holder bigint);

	CREATE TABLE owners (
		name    text COLLATE "C" PRIMARY KEY,
		session bigint NOT NULL,
		beats   bigint NOT NULL DEFAULT 0,
		renewed bigint NOT NULL
	);

	CREATE TABLE counts (queue text COLLATE "C" NOT NULL, kind smallint NOT NULL, n bigint NOT NULL);
	CREATE INDEX counts_queue ON counts (queue);
	ALTER TABLE counts SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

	CREATE FUNCTION count_tasks() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
	BEGIN
		IF TG_OP = 'INSERT' THEN
			INSERT INTO counts SELECT queue, kind, sum(n) FROM (
				SELECT queue, state AS kind, 1 AS n FROM new_rows
				UNION ALL SELECT queue, 7, 1 FROM new_rows WHERE phase = 1 AND exclusive = ''
			) AS c GROUP BY queue, kind;
		ELSIF TG_OP = 'DELETE' THEN
			INSERT INTO counts SELECT queue, kind, sum(n) FROM (
				SELECT queue, state AS kind, -1 AS n FROM old_rows
				UNION ALL SELECT queue, 7, -1 FROM old_rows WHERE phase = 1 AND exclusive = ''
			) AS c GROUP BY queue, kind;
		ELSE
			INSERT INTO counts SELECT queue, kind, sum(n) FROM (
				SELECT queue, state AS kind, 1 AS n FROM new_rows
				UNION ALL SELECT queue, 7, 1 FROM new_rows WHERE phase = 1 AND exclusive = ''
				UNION ALL SELECT queue, state, -1 FROM old_rows
				UNION ALL SELECT queue, 7, -1 FROM old_rows WHERE phase = 1 AND exclusive = ''
			) AS c GROUP BY queue, kind HAVING sum(n) <> 0;
		END IF;
		RETURN NULL;
	END $$;
	CREATE TRIGGER tasks_inserted AFTER INSERT ON tasks REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_tasks();
	CREATE TRIGGER tasks_updated AFTER UPDATE ON tasks REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_tasks();
	CREATE TRIGGER tasks_deleted AFTER DELETE ON tasks REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION count_tasks();
	`,
}}

// readyKind is the kind of count of the tasks without an exclusive name that can
// begin.
const readyKind = 7
