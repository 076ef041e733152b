package callback

import (
	"net/netip"
	"strings"
	"testing"
)

func rules(t *testing.T, prefixes ...string) (all []Rule) {
	t.Helper()
	for _, p := range prefixes {
		p, private := strings.CutPrefix(p, "private ")
		r, err := ParseRule(p, private)
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		all = append(all, r)
	}
	return all
}

func TestARuleAllowsWholeSegmentsOfOneOrigin(t *testing.T) {
	for prefix, urls := range map[string][]string{
		"https://hooks.example.com/usher": {
			"https://hooks.example.com/usher", "https://hooks.example.com/usher/", "https://hooks.example.com/usher/a/b?c=d&e=%2F..",
			"HTTPS://Hooks.Example.COM:443/usher/a", "https://hooks.example.com/%75sher", "https://hooks.example.com/usher//a", "https://hooks.example.com:0443/usher",
		},
		"https://hooks.example.com/usher/": {"https://hooks.example.com/usher", "https://hooks.example.com/usher/x"},
		"https://example.com":              {"https://example.com", "https://example.com?x", "https://example.com/", "https://example.com/a"},
		"https://example.com/":             {"https://example.com", "https://example.com/a"},
		"http://EXAMPLE.com:8080/a%20b":    {"http://example.com:8080/a%20b/c"},
		"http://192.0.2.7":                 {"http://192.0.2.7:80/"},
		"http://[2001:DB8::1]:81/x":        {"http://[2001:db8:0:0::1]:81/x"},
		"http://[::ffff:192.0.2.7]/":       {"http://192.0.2.7/"},
	} {
		for _, u := range urls {
			if _, err := find(rules(t, prefix), u); err != nil {
				t.Errorf("%s: %s: %v", prefix, u, err)
			}
		}
	}
}

func TestNothingElseIsAllowed(t *testing.T) {
	all := rules(t, "https://hooks.example.com/usher", "http://192.0.2.7/")
	for _, u := range []string{
		"", "/usher", "//hooks.example.com/usher", "hooks.example.com/usher", "https:hooks.example.com/usher", "https:///usher", "https://",
		// Another scheme, host, port or path.
		"http://hooks.example.com/usher", "ftp://hooks.example.com/usher", "file:///usher", "https://example.com/usher", "https://hooks.example.com.evil.org/usher",
		"https://xhooks.example.com/usher", "https://hooks.example.com./usher", "https://hooks.example.com:444/usher", "https://hooks.example.com:/usher",
		"https://hooks.example.com:0/usher", "https://hooks.example.com:65979/usher", "https://hooks.example.com/", "https://hooks.example.com/ushers",
		"https://hooks.example.com/ushe", "https://hooks.example.com/Usher", "https://hooks.example.com//usher", "https://hooks.example.com?/usher",
		// A user before the host, and what some readers take for the end of the host.
		"https://hooks.example.com@evil.org/usher", "https://evil.org@hooks.example.com/usher", "https://@hooks.example.com/usher", "https://evil.org:x@hooks.example.com/usher",
		`https://evil.org\@hooks.example.com/usher`, `https://hooks.example.com\usher`, "https://evil.org#@hooks.example.com/usher", "https://hooks.example.com/usher#x",
		"https://evil.org?@hooks.example.com/usher", "https://evil.org%2f@hooks.example.com/usher", "https://hooks.example.com%2eevil.org/usher", "https://hooks.example.com%00/usher",
		// A path that leads elsewhere.
		"https://hooks.example.com/usher/../admin", "https://hooks.example.com/usher/..", "https://hooks.example.com/usher/./x", "https://hooks.example.com/usher/%2e%2e/admin",
		"https://hooks.example.com/usher/.%2E/admin", "https://hooks.example.com/usher/..;/admin", "https://hooks.example.com/usher/..%3bx/admin",
		"https://hooks.example.com/usher%2fx", "https://hooks.example.com/usher/..%2fadmin", "https://hooks.example.com/usher/..%5cadmin", "https://hooks.example.com/usher/%252e%252e/admin",
		"https://hooks.example.com/usher/%0d%0aX:y", "https://hooks.example.com/usher/%00", "https://hooks.example.com/usher/%zz",
		// What is not ASCII, or no character of a URL.
		"https://hooks.example.com/usher/ü", "https://hooks.example.com/usher/a b", "https://hooks.example.com/usher\r\nX: y", "https://hooks.example.com/usher\x00", " https://hooks.example.com/usher",
		"https://hooks。example。com/usher", "https://ⓗooks.example.com/usher",
		// Other forms of an address.
		"http://192.0.519/", "http://3221225991/", "http://0xc0000207/", "http://0300.0.2.7/", "http://192.0.2.7./", "http://[192.0.2.7]/", "http://[::ffff:192.0.2.7%25eth0]/", "http://[64:ff9b::192.0.2.7]/",
		"https://hooks.example.com/usher/" + strings.Repeat("x", mostURL),
	} {
		if r, err := find(all, u); err == nil {
			t.Errorf("%q is allowed by %+v", u, r)
		}
	}
}

func TestWrongRulesAreRefused(t *testing.T) {
	for text, says := range map[string]string{
		"hooks.example.com": "https://", "https://": "no host", "https://a.example/?x": "no query", "https://a.example/?": "no query", "https://u@a.example": "user", "https://*.example.com": "'*'",
		"https://a.example/..": "..", "https://0.0.0.0": "not the address", "https://[::]": "not the address", "http://224.0.0.1": "not the address", "http://127.1": "neither",
	} {
		if _, err := ParseRule(text, true); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error %v, want %q", text, err, says)
		}
	}
}

func TestOnlyPublicAddressesAreDialed(t *testing.T) {
	public := rules(t, "https://hooks.example.com")[0]
	private := rules(t, "private https://hooks.example.com")[0]
	for text, want := range map[string]struct{ public, private bool }{
		"8.8.8.8":                  {true, true},
		"2606:4700::1111":          {true, true},
		"::ffff:8.8.8.8":           {true, true},
		"64:ff9b::8.8.8.8":         {true, true},
		"127.0.0.1":                {false, true},
		"127.8.9.10":               {false, true},
		"::1":                      {false, true},
		"::ffff:127.0.0.1":         {false, true},
		"64:ff9b::127.0.0.1":       {false, true},
		"64:ff9b::10.0.0.1":        {false, true},
		"10.1.2.3":                 {false, true},
		"172.16.0.1":               {false, true},
		"172.31.255.255":           {false, true},
		"192.168.0.1":              {false, true},
		"100.64.0.1":               {false, true},
		"198.18.0.1":               {false, true},
		"192.0.0.8":                {false, true},
		"fd00::1":                  {false, true},
		"fec0::1":                  {false, true},
		"2002:7f00:1::":            {false, true},
		"2001::1":                  {false, true},
		"::127.0.0.1":              {false, true},
		"::ffff:100.64.0.1":        {false, true},
		"169.254.169.254":          {false, false},
		"::ffff:169.254.169.254":   {false, false},
		"64:ff9b::169.254.169.254": {false, false},
		"fe80::1":                  {false, false},
		"fe80::1%eth0":             {false, false},
		"224.0.0.1":                {false, false},
		"ff02::1":                  {false, false},
		"0.0.0.0":                  {false, false},
		"0.1.2.3":                  {false, false},
		"::":                       {false, false},
		"255.255.255.255":          {false, false},
		"240.0.0.1":                {false, false},
	} {
		a := netip.MustParseAddr(text)
		if err := public.checkAddress(a); (err == nil) != want.public {
			t.Errorf("%s for a public host: %v", text, err)
		}
		if err := private.checkAddress(a); (err == nil) != want.private {
			t.Errorf("%s for a private host: %v", text, err)
		}
	}
	named := rules(t, "http://10.0.0.1")[0]
	if err := named.checkAddress(netip.MustParseAddr("10.0.0.1")); err != nil {
		t.Errorf("an address that the rule names: %v", err)
	}
	if err := named.checkAddress(netip.MustParseAddr("10.0.0.2")); err == nil {
		t.Error("a rule allows an address that it does not name")
	}
	if err := public.control("tcp", "not an address", nil); err == nil {
		t.Error("what cannot be judged is dialed")
	}
}

func TestASecretIsReadAsStandardWebhooksWritesIt(t *testing.T) {
	const plain = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	for _, text := range []string{plain, "whsec_" + plain} {
		s, err := ParseSecret(text)
		if err != nil {
			t.Fatal(err)
		}
		// The example of the specification.
		got := s.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`))
		if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
			t.Errorf("%s: the signature is %s, want %s", text, got, want)
		}
	}
	for _, text := range []string{"", "whsec_", "secret", "c2hvcnQ=", "not base64 at all, but long enough to be a secret", strings.Repeat("QUJD", 22), "{env.NONE}"} {
		if _, err := ParseSecret(text); err == nil || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%q: error %v", text, err)
		}
	}
}
