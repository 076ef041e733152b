// Package policies has the policies that come with Usher: pure functions that
// turn the demand for a service into a number of instances.
//
// It promises: a policy answers at once and never loops over what a
// configuration may choose; its target is between Inputs.Min and Inputs.Max;
// its mark and its time to look again say when the answer can change.
//
// It never knows a clock, a platform, Caddy or a log: time comes in with the
// inputs. It imports scaler alone.
package policies
