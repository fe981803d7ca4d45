package pocketrank.demo

import android.app.Activity

/** This flavour has no INTERNET permission, and no button for it. */
object Sync {
    const val IS_THERE = false

    @Suppress("UNUSED_PARAMETER")
    fun ask(activity: Activity, desk: Desk, user: String?, say: (String) -> Unit, then: () -> Unit) = Unit
}
