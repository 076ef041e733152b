// Package monitoring tests the monitoring files of deploy/: every
// panel of the Grafana dashboard and every alert, as they stand there, against
// a running Usher, by a real Prometheus that scrapes it.
//
// Where no Prometheus is installed the tests are skipped, with one line that
// says so, unless USHER_TEST_PROMETHEUS is `required`.
package monitoring
