package server

import (
	"fmt"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// secret is in every DSN here. It has the signs that DSNs are cut apart at.
const secret = "s3cr%t :/@?#'"

func TestNoErrorShowsThePassword(t *testing.T) {
	for dsn, words := range map[string]string{
		"":                                       "the DSN of the database is required",
		"postgres://usher:" + secret + "@db/app": "cannot be read",
		"postgres://usher:s3cr%t@db/app":         "with %xx",
		"host=db password=\"" + secret:           "cannot be read",
		"host=db password=s3cr%t sslmode=nonsense":                          "a mistake in its sslmode",
		"host=db password=s3cr%t sslmode=require sslrootcert=/s3cr":         "a mistake in its sslrootcert",
		"host=db password=s3cr%t port=x":                                    "a mistake in its port",
		"host=db password=s3cr%t connect_timeout=x":                         "a mistake in its connect_timeout",
		"postgres://usher:s3cr%25t@db:port/app":                             "a mistake in its port",
		"postgres://usher:s3cr%25t@db/app?sslmode=verify-full&sslrootcert=": "",
		"nonsense s3cr%t": "cannot be read",
	} {
		d, err := Parse(dsn, "")
		text := fmt.Sprint(d, err)
		if (err == nil) != (words == "") || !strings.Contains(text, words) || strings.Contains(text, "s3cr") {
			t.Errorf("%s: %s; want %q, and no password", dsn, text, words)
		}
	}
	if _, err := Parse("postgres://db", strings.Repeat("x", 64)); err == nil || !strings.Contains(err.Error(), "1 to 63 bytes") {
		t.Errorf("a long name of a schema: error %v", err)
	}
}

func TestTheNameForPeople(t *testing.T) {
	for dsn, want := range map[string]string{
		"postgres://usher:s3cret@db/app":             "the schema usher of the PostgreSQL database app at db:5432",
		"postgres://usher:s3cret@one:1,[::1]:2/app":  "the schema usher of the PostgreSQL database app at one:1, [::1]:2",
		"host=/run/postgresql user=a dbname=b":       "the schema usher of the PostgreSQL database b at /run/postgresql",
		"host=db user=a password=s3cret dbname=some": "the schema usher of the PostgreSQL database some at db:5432",
	} {
		d, err := Parse(dsn, "")
		if err != nil {
			t.Errorf("%s: %v", dsn, err)
			continue
		}
		if d.String() != want {
			t.Errorf("it is called %q, want %q", d, want)
		}
	}
}

func TestPlaceholders(t *testing.T) {
	t.Setenv("USHER_TEST_SECRET", secret+" +\\'")
	t.Setenv("USHER_TEST_HOST", "db:6432")
	t.Setenv("USHER_TEST_DSN", "host=whole password=x")
	for dsn, want := range map[string][2]string{
		"postgres://usher:{env.USHER_TEST_SECRET}@{env.USHER_TEST_HOST}/app": {"db", secret + " +\\'"},
		"postgres://usher:plain@{env.USHER_TEST_HOST}/app":                   {"db", "plain"},
		"host=db password={env.USHER_TEST_SECRET} dbname=app":                {"db", secret + " +\\'"},
		"host=db password='{env.USHER_TEST_SECRET}' dbname=app":              {"db", secret + " +\\'"},
		"{env.USHER_TEST_DSN}": {"whole", "x"},
	} {
		d, err := Configured(dsn, "")
		if err != nil {
			t.Errorf("%s: %v", dsn, err)
			continue
		}
		if c := d.Config(); c.Host != want[0] || c.Password != want[1] {
			t.Errorf("%s: host %q, password %q; want %q", dsn, c.Host, c.Password, want)
		}
	}
	for _, c := range [][2]string{{"postgres://u:{env.USHER_IS_NOT_SET}@db/app", "dsn: "}, {"", "schema: "}} {
		schema := ""
		if c[0] == "" {
			c[0], schema = "postgres://db", "{env.USHER_IS_NOT_SET}"
		}
		if _, err := Configured(c[0], schema); err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s: error %v, want %q", c[0], err, c[1])
		}
	}
}

func TestCaddyfile(t *testing.T) {
	for _, c := range []struct{ text, dsn, schema, words string }{
		{"postgres postgres://db", "postgres://db", "", ""},
		{"postgres \"host=db user=a\" {\n schema x\n}", "host=db user=a", "x", ""},
		{"postgres {\n dsn postgres://db\n schema x\n}", "postgres://db", "x", ""},
		{"postgres", "", "", "the DSN of the database is missing"},
		{"postgres {\n schema x\n}", "", "", "the DSN of the database is missing"},
		{"postgres host=db user=a", "", "", "put it in quotes"},
		{"postgres postgres://db {\n dsn postgres://db\n}", "", "", "dsn is given twice"},
		{"postgres postgres://db {\n schema x\n schema y\n}", "", "", "schema is given twice"},
		{"postgres postgres://db {\n schema\n}", "", "", "schema takes exactly one value"},
		{"postgres postgres://db {\n table x\n}", "", "", "unrecognized option 'table'; it knows dsn and schema"},
	} {
		d := caddyfile.NewTestDispenser(c.text)
		d.Next()
		var dsn, schema string
		err := ParseCaddyfile(d, &dsn, &schema)
		if c.words != "" {
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%s: error %v, want %q", c.text, err, c.words)
			}
			continue
		}
		if err != nil || dsn != c.dsn || schema != c.schema {
			t.Errorf("%s: DSN %q, schema %q, error %v", c.text, dsn, schema, err)
		}
	}
}
