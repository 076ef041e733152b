package scaler

import "context"

// Diagnoser is implemented by a Scaler that can see more of a start than a
// probe can: where the instance does listen, and what it has written. Where
// the platform itself tells what a start waits for, Instance.Failure and
// Instance.Delay carry it, and no Diagnoser is needed.
type Diagnoser interface {
	// Diagnose looks at an instance that is not ready yet. It is called a few
	// times while a start takes long, never for one that takes no longer than
	// a second. It may take as long as reading some files does.
	Diagnose(ctx context.Context, instanceID string) Diagnosis
}

// A Diagnosis is what can be seen of an instance that is not ready. Its zero
// value says that nothing is known.
type Diagnosis struct {
	// Short is the short fact that clients may see, such as "listens on
	// 0.0.0.0:8000, but was told port 21007". Like Failure.Short it holds no paths,
	// arguments, output or secrets.
	Short string

	// Mistake is true if Short shows that something is set up wrong: waiting
	// longer will not help.
	Mistake bool

	// Detail is for operators: all that was seen, and what to do about it.
	Detail string

	// Output has the last lines that the instance has written.
	Output string
}
