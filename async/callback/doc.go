// Package callback sends the callbacks of tasks: it tells URLs that clients have named
// how their tasks have ended.
//
// It owns which URLs may be told (Rule), which addresses they may have, the signature,
// and how a callback is sent. Callbacks are tasks themselves; the dispatcher of package
// async executes them with a Sender in place of instances.
//
// It promises:
//   - A callback goes only to a URL that a rule allows, when it is accepted and again
//     when it is sent.
//   - Each connection is judged by the very address that is dialed. So no answer of a
//     name server leads a callback into a private network that no rule names.
//   - Redirects are not followed, proxies of the environment are not used, and of an
//     answer only its status and Retry-After are looked at.
//   - Each callback is signed as Standard Webhooks says. Its id is the same in all
//     attempts.
//
// A callback is sent at least once, or until Usher gives up: it may come again after it
// has arrived. The package knows neither Caddy nor a store.
package callback
