# Completion of tulle's commands and flags for bash. tulle itself says what may come next.
_tulle() {
	local line=${COMP_LINE:0:COMP_POINT} words reply kind current prefix=
	read -ra words <<<"$line"
	[[ $line != *[[:space:]] ]] || words+=("")
	current=${words[-1]}
	mapfile -t reply < <("$1" complete -- "${words[@]:1}" 2>/dev/null)
	kind=${reply[0]-}
	reply=("${reply[@]:1}")
	if [[ $current == --*=* ]]; then
		[[ $COMP_WORDBREAKS == *=* ]] || prefix=${current%%=*}=
		current=${current#*=}
	fi
	case $kind in
	files) compopt -o filenames && mapfile -t COMPREPLY < <(compgen -P "$prefix" -f -- "$current") ;;
	directories) compopt -o filenames && mapfile -t COMPREPLY < <(compgen -P "$prefix" -d -- "$current") ;;
	*) COMPREPLY=("${reply[@]%%$'\t'*}") && COMPREPLY=("${COMPREPLY[@]/#/$prefix}") ;;
	esac
}
complete -F _tulle tulle
