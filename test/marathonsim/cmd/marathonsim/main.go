// Command marathonsim runs the simulated Marathon until it is interrupted.
//
//	marathonsim -listen 127.0.0.1:8080,127.0.0.1:8081,127.0.0.1:8082 app.json ...
//
// The arguments are files with the JSON of an app each; they are posted once
// there is a leader.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/caddy-usher/usher/test/marathonsim"
)

func main() {
	log.SetFlags(0)
	var (
		cfg     marathonsim.Config
		listen  = flag.String("listen", "127.0.0.1:8080,127.0.0.1:8081,127.0.0.1:8082", "addresses of the nodes, on loopback")
		verbose = flag.Bool("v", false, "print the journal")
	)
	flag.StringVar(&cfg.Profile, "profile", "", "version of Marathon: "+strings.Join(marathonsim.Profiles(), ", "))
	flag.StringVar(&cfg.ControlListen, "control", "127.0.0.1:8079", "address of the control server")
	flag.StringVar(&cfg.BasePath, "base-path", "", "path in front of the API, such as /service/marathon")
	flag.StringVar(&cfg.Auth.User, "user", "", "user for basic authentication")
	flag.StringVar(&cfg.Auth.Password, "password", "", "password for basic authentication")
	flag.StringVar(&cfg.Auth.Token, "token", "", "token to ask for, as DC/OS does")
	flag.IntVar(&cfg.Agents, "agents", 0, "number of agents; default 2")
	flag.IntVar(&cfg.FirstPort, "first-port", 0, "first port that the agents offer; default 31000")
	flag.IntVar(&cfg.Ports, "ports", 0, "number of ports that each agent offers; default 20")
	flag.Float64Var(&cfg.Speed, "speed", 1, "how much faster than the wall clock it runs")
	flag.Uint64Var(&cfg.Seed, "seed", 0, "seed; default: drawn")
	flag.BoolVar(&cfg.TaskKilling, "task-killing", false, "the feature task_killing")
	flag.Parse()
	cfg.Listen = strings.Split(*listen, ",")
	if *verbose {
		cfg.Log = func(e marathonsim.Entry) {
			fmt.Printf("%s %-10s %s %s %s\n", e.Time.Format("15:04:05.000"), e.Kind, e.App, e.ID, e.Text)
		}
	}
	if err := run(cfg, flag.Args()); err != nil {
		log.Fatal(err)
	}
}

func run(cfg marathonsim.Config, apps []string) error {
	s, err := marathonsim.New(cfg)
	if err != nil {
		return err
	}
	defer s.Close()
	log.Printf("marathonsim: %s, seed %d", strings.Join(s.URLs(), ","), s.Seed)
	for _, file := range apps {
		app, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := s.CreateApp(app); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM)
	<-ended
	return nil
}
