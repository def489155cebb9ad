package backend

// Failure is that entries could not be changed: how many, by table, with the names of Changes.Count and "firewall". Its text
// is that of Err.
type Failure struct {
	Count map[string]int
	Err   error
}

func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns why.
func (f *Failure) Unwrap() error { return f.Err }

// Failed is the number of entries that could not be changed by table, summed over all the Failures that err is made of.
func Failed(err error) map[string]int {
	sum := map[string]int{}
	addFailed(sum, err)
	return sum
}

func addFailed(sum map[string]int, err error) {
	switch err := err.(type) {
	case *Failure:
		for table, n := range err.Count {
			sum[table] += n
		}
		addFailed(sum, err.Err)
	case interface{ Unwrap() error }:
		addFailed(sum, err.Unwrap())
	case interface{ Unwrap() []error }:
		for _, e := range err.Unwrap() {
			addFailed(sum, e)
		}
	}
}
